/**
 * What a browser knows of its network and its user, and what that is good for. Nothing of it is there in Node; a worker
 * has the network's part.
 *
 * - back `online`: the network is another one, so the socket of the old one is dead though the browser does not know it
 *   yet, and there is nothing to wait for any more: connect at once.
 * - `visible` again: somebody is looking, so a wait that spares the sidecar is cut short. After a long absence (a lid that
 *   was closed, a phone that froze its pages) the sidecar may have given the socket up without a word that arrived.
 * - offline: no try can succeed. But what a browser says is sometimes wrong (a sidecar on loopback, some virtual
 *   networks): there is one try each half minute.
 */

import type { Scope } from "./types.js";

/** Unseen for so long, a socket is not trusted: within that time the sidecar gives a dead one up. */
const ABSENCE_MS = 80_000;

export interface Watched {
  /** The network is there again. */
  online(): void;
  /** The page is seen again; `long`: after an absence in which its socket may have died. */
  visible(long: boolean): void;
}

/** Tell of both until what is given back is called. */
export function watch(scope: Scope, watched: Watched): () => void {
  const page = scope.document;
  let hiddenAt = Infinity;
  const online = (): void => {
    watched.online();
  };
  const look = (): void => {
    if (page?.visibilityState === "hidden") {
      hiddenAt = scope.Date.now();
    } else {
      watched.visible(scope.Date.now() - hiddenAt > ABSENCE_MS);
      hiddenAt = Infinity;
    }
  };
  scope.addEventListener?.("online", online);
  page?.addEventListener("visibilitychange", look);
  return () => {
    scope.removeEventListener?.("online", online);
    page?.removeEventListener("visibilitychange", look);
  };
}

/** Whether the browser says that there is no network. */
export const offline = (scope: Scope): boolean => scope.navigator?.onLine === false;
