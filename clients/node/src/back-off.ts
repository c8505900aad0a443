/** How long to wait before the next try: full jitter, so that many clients do not come back at once. */

const MAX_DOUBLINGS = 32;

/** Numbers of [0, 1). */
export type Uniform = () => number;

/** Uniform between 0 and a bound that doubles with every try, from `baseS` up to `capS`. */
export class BackOff {
  readonly #baseS: number;
  readonly #capS: number;
  readonly #uniform: Uniform;
  #tries = 0;

  constructor(baseS: number, capS: number, uniform: Uniform = Math.random) {
    this.#baseS = baseS;
    this.#capS = capS;
    this.#uniform = uniform;
  }

  /** The seconds to wait before the next try; what somebody asked for is added, not shortened. */
  nextS(atLeastS = 0): number {
    const boundS = Math.min(this.#capS, this.#baseS * 2 ** Math.min(this.#tries, MAX_DOUBLINGS));
    this.#tries += 1;
    return atLeastS + boundS * this.#uniform();
  }

  /** How many have failed since it last went well. */
  get tries(): number {
    return this.#tries;
  }

  /** It went well: begin from `baseS` again. */
  reset(): void {
    this.#tries = 0;
  }
}
