/**
 * The other tabs of this browser: who they are and which isolation key each has. An isolation key only names where a
 * message goes, so it may be told; no token ever is.
 */

const CHANNEL = "ws-sidecar-demo";

export class Tabs extends EventTarget {
  #id = crypto.randomUUID();
  #user;
  #key = "";
  #others = new Map();
  #channel = new BroadcastChannel(CHANNEL);

  /** Tells a `change` event whenever another tab comes, goes or gets another key. */
  constructor(user) {
    super();
    this.#user = user;
    this.#channel.onmessage = ({ data }) => this.#receive(data);
    this.#post("who");
  }

  /** This tab's key from now on; "" when it has none. */
  announce(key) {
    this.#key = key;
    this.#post(key ? "here" : "gone");
  }

  /** Another tab as {user, key}: the newest of another user, else of this one, else null. */
  get victim() {
    const others = [...this.#others.values()].reverse();
    return others.find(({ user }) => user !== this.#user) ?? others[0] ?? null;
  }

  #receive({ kind, id, user, key }) {
    if (kind === "who") {
      if (this.#key) this.#post("here");
      return;
    }
    this.#others.delete(id);
    if (kind === "here") this.#others.set(id, { user, key });
    this.dispatchEvent(new Event("change"));
  }

  #post(kind) {
    this.#channel.postMessage({ kind, id: this.#id, user: this.#user, key: this.#key });
  }
}
