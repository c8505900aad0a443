/** One consumer's queue: what was read for it and is not handed out yet. Unbounded by itself: the session counts. */

export interface Hooks<T> {
  /** The item is in the consumer's hands. */
  handed(item: T): void;
  /** The consumer asked for the next one, or went. */
  done(item: T): void;
  /** Nobody will take it. */
  letGo(item: T): void;
}

type Waiting<T> = readonly [resolve: (result: IteratorResult<T>) => void, reject: (error: unknown) => void];

export class Reader<T> implements AsyncIterableIterator<T> {
  readonly #hooks: Hooks<T>;
  readonly #items: T[] = [];
  readonly #waiting: Waiting<T>[] = [];
  #handed: [T] | undefined;
  /** How it ends behind the last item. */
  #end: { readonly error: unknown } | undefined;

  constructor(hooks: Hooks<T>) {
    this.#hooks = hooks;
  }

  get ended(): boolean {
    return this.#end !== undefined;
  }

  push(item: T): void {
    this.#items.push(item);
    this.#serve();
  }

  /** Nothing comes behind what is there; with an error, that is thrown there. The first end counts. */
  end(error?: unknown): void {
    this.#end ??= { error };
    this.#serve();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<T>> {
    this.#release();
    return new Promise((...waiting) => {
      this.#waiting.push(waiting);
      this.#serve();
    });
  }

  /** The consumer goes: what is left is nobody's. */
  return(): Promise<IteratorResult<T>> {
    this.end();
    this.#release();
    for (const item of this.#items.splice(0)) this.#hooks.letGo(item);
    return Promise.resolve({ done: true, value: undefined });
  }

  #serve(): void {
    while (this.#items.length || this.#end) {
      const [resolve, reject] = this.#waiting.shift() ?? [];
      if (!resolve || !reject) return;
      if (this.#items.length) {
        const value = this.#items.shift() as T;
        this.#handed = [value];
        this.#hooks.handed(value);
        resolve({ done: false, value });
      } else if (this.#end?.error === undefined) {
        resolve({ done: true, value: undefined });
      } else {
        reject(this.#end.error);
      }
    }
  }

  #release(): void {
    const handed = this.#handed;
    this.#handed = undefined;
    if (handed) this.#hooks.done(handed[0]);
  }
}
