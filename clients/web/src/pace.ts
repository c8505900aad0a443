/** How fast this side may write: below what the sidecar ends a socket for (4005). Pure: it is given the time. */

/** Two buckets that fill in a second. A frame goes when both are above nothing, and may leave them in debt. */
export class Pace {
  readonly #rates: readonly [number, number];
  #frames: number;
  #bytes: number;
  #at: number;

  constructor(framesPerSecond: number, bytesPerSecond: number, now: number) {
    this.#rates = [framesPerSecond, bytesPerSecond];
    this.#frames = framesPerSecond;
    this.#bytes = bytesPerSecond;
    this.#at = now;
  }

  /** The milliseconds until the next frame may go; 0: now. */
  wait(now: number): number {
    const [frames, bytes] = this.#rates;
    const passed = (now - this.#at) / 1000;
    this.#at = now;
    this.#frames = Math.min(frames, this.#frames + passed * frames);
    this.#bytes = Math.min(bytes, this.#bytes + passed * bytes);
    return Math.ceil(1000 * Math.max(0, (1 - this.#frames) / frames, (1 - this.#bytes) / bytes));
  }

  /** One frame of so many bytes goes. */
  take(bytes: number): void {
    this.#frames -= 1;
    this.#bytes -= bytes;
  }
}
