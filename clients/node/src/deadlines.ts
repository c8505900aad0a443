/** The deadlines of many, by one timer: a timer for each message would cost more than the message. */

/** Something that has a time. */
export interface Due {
  /** Monotonic seconds. Not to be changed while it is kept. */
  readonly due: number;
}

/** Calls `expire` for each item whose time has come. The timer holds the process as long as something waits for it. */
export class Deadlines<T extends Due> {
  readonly #expire: (item: T) => void;
  readonly #now: () => number;
  readonly #items = new Set<T>();
  #timer: NodeJS.Timeout | undefined;
  #timerDue = Infinity;

  constructor(expire: (item: T) => void, now: () => number) {
    this.#expire = expire;
    this.#now = now;
  }

  get size(): number {
    return this.#items.size;
  }

  add(item: T): void {
    this.#items.add(item);
    if (item.due < this.#timerDue) this.#arm(item.due);
    else if (this.#items.size === 1) this.#timer?.ref();
  }

  delete(item: T): void {
    if (this.#items.delete(item) && this.#items.size === 0) this.#timer?.unref();
  }

  /** No timer is left behind. */
  close(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#timerDue = Infinity;
  }

  #arm(due: number): void {
    clearTimeout(this.#timer);
    this.#timerDue = due;
    this.#timer = setTimeout(() => {
      this.#look();
    }, Math.max(0, due - this.#now()) * 1_000 + 1);
  }

  /** Let go of what is due; wait for the next of those that are left now. */
  #look(): void {
    this.#timer = undefined;
    this.#timerDue = Infinity;
    const now = this.#now();
    let next = Infinity;
    for (const item of [...this.#items]) {
      if (item.due > now) next = Math.min(next, item.due);
      else if (this.#items.delete(item)) this.#expire(item);
    }
    if (next < this.#timerDue) this.#arm(next);
  }
}
