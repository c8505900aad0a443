/** What an agent remembers of what it was told: names, the latest of them, so that a repeat is known. */

const MAX_REMEMBERED = 10_000;

/** So many names at most, the latest. */
export class Recent {
  readonly #most: number;
  readonly #names = new Set<string>();

  constructor(most: number) {
    this.#most = most;
  }

  get size(): number {
    return this.#names.size;
  }

  has(name: string): boolean {
    return this.#names.has(name);
  }

  /** Remember it; the oldest goes. */
  add(name: string): void {
    this.#names.add(name);
    if (this.#names.size > this.#most) {
      for (const oldest of this.#names) {
        this.#names.delete(oldest);
        return;
      }
    }
  }

  /** Forget it, where it is known. */
  delete(name: string): void {
    this.#names.delete(name);
  }
}

/** A message as it is known by: the context and the client's own id, which may be empty. */
export interface MessageName {
  readonly isolationKey: string;
  readonly messageId: string;
}

/** Which events this process has taken, and which messages were cancelled before they came. */
export class AgentMemory {
  readonly #taken: Recent;
  readonly #messages: Recent;
  readonly #cancelled: Recent;

  constructor(most = MAX_REMEMBERED) {
    this.#taken = new Recent(most);
    this.#messages = new Recent(most);
    this.#cancelled = new Recent(most);
  }

  /**
   * Whether this process takes that event for the first time; from then on it is known.
   *
   * A deliveryId lasts as long as the sidecar's process. A message that a store kept over its end comes under another one,
   * marked; it is known by the client's own id.
   */
  isNew(deliveryId: string, message: MessageName | undefined, redelivered: boolean): boolean {
    const name = message === undefined ? undefined : nameOf(message);
    const known = this.#taken.has(deliveryId) || (redelivered && name !== undefined && this.#messages.has(name));
    this.#taken.add(deliveryId);
    if (name !== undefined) this.#messages.add(name);
    return !known;
  }

  /** It was not begun, and is new when it comes again. */
  forget(deliveryId: string, message: MessageName | undefined): void {
    this.#taken.delete(deliveryId);
    const name = message === undefined ? undefined : nameOf(message);
    if (name !== undefined) this.#messages.delete(name);
  }

  /** The client wants no answer to that message, which may not have come yet. */
  cancel(message: MessageName): void {
    const name = nameOf(message);
    if (name !== undefined) this.#cancelled.add(name);
  }

  /** Whether the client said that it wants no answer to that. */
  isCancelled(message: MessageName): boolean {
    const name = nameOf(message);
    return name !== undefined && this.#cancelled.has(name);
  }
}

/** Identifiers hold no line break. */
function nameOf({ isolationKey, messageId }: MessageName): string | undefined {
  return messageId === "" ? undefined : `${isolationKey}\n${messageId}`;
}
