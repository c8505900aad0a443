/** How long to wait before the next try: full jitter, so that many clients do not come back at once. Pure. */

const BASE_MS = 250;
/** The longest bound, and how long a client waits that its browser says is offline. */
export const CAP_MS = 30_000;

export class BackOff {
  readonly #random: () => number;
  #tries = 0;

  /** `random` gives numbers of [0, 1). */
  constructor(random: () => number) {
    this.#random = random;
  }

  /** Anywhere between 0 and a bound that doubles with every try, in milliseconds. */
  next(): number {
    return this.#random() * Math.min(CAP_MS, BASE_MS * 2 ** this.#tries++);
  }

  /** It went well: begin from the least again. */
  reset(): void {
    this.#tries = 0;
  }
}
