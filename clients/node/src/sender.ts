/**
 * The coalescing sender: many sends at once become few frames of one Deliver stream.
 *
 * An idle sender writes what one turn of the event loop has sent at its end; while a write is under way the next ones
 * gather. There is no timer to wait for.
 */

import { onAbort } from "./abort.js";
import { BackOff } from "./back-off.js";
import { now, sleep } from "./clock.js";
import type { Connection } from "./connection.js";
import { Deadlines } from "./deadlines.js";
import { DeliverStream } from "./deliver-stream.js";
import type { Entry } from "./entry.js";
import { badRequest, deadlinePassed } from "./error-catalogue.js";
import { TransportError } from "./errors.js";
import { buildMessage, encodeMessage } from "./messages.js";
import type { OutgoingMessage } from "./messages.js";
import { isPassing } from "./passing.js";
import { BASE_S, CAP_S } from "./retries.js";
import { SenderCore } from "./sender-core.js";
import type { StreamCancellation } from "./sender-core.js";
import { limitsFrom } from "./sender-limits.js";
import type { SenderLimits } from "./sender-limits.js";
import type { Receipt, SendOptions, Target } from "./values.js";

const CLOSE_TIMEOUT_S = 5;
/** How long a stream on which all is answered may take to end in order: nothing is lost where it is cut off. */
const HALF_CLOSE_S = 0.2;

/** What a sender may be told. */
export interface SenderOptions {
  readonly limits?: Partial<SenderLimits> | undefined;
  /** Have the sidecar tell what clients acknowledge: for `waitForAckS`. Default: false. */
  readonly reportAcknowledged?: boolean | undefined;
  /**
   * Called when a client wants no more of a response stream in a context that this sender sends to; once for each token
   * that it sends by.
   */
  readonly onStreamCancelled?: ((cancellation: StreamCancellation) => void) | undefined;
}

/**
 * Sends many messages fast. Made by `SidecarClient.sender`.
 *
 * Sends are accepted in the order in which they were begun, context by context. A stream that breaks is opened again, and
 * what had no answer is sent again with the same messageId, in order, until its deadline. A message that the sidecar refuses
 * is not sent again: it would come after later ones.
 */
export class Sender {
  readonly #connection: Connection;
  readonly #limits: SenderLimits;
  readonly #reportAcknowledged: boolean;
  readonly #onClosed: (sender: Sender) => void;
  readonly #core: SenderCore;
  readonly #deadlines = new Deadlines<Entry>((entry) => {
    this.#expire(entry);
  }, now);
  readonly #backOff: BackOff;
  /** Aborted when nothing more is to be waited for. */
  readonly #over = new AbortController();
  #stream: DeliverStream | undefined;
  #running: Promise<void> | undefined;
  #closing: Promise<void> | undefined;
  /** Told when nothing is queued or unanswered any more. */
  #whenAnswered: (() => void) | undefined;

  /** @internal */
  constructor(connection: Connection, options: SenderOptions, onClosed: (sender: Sender) => void) {
    this.#connection = connection;
    this.#limits = limitsFrom(options.limits);
    this.#reportAcknowledged = options.reportAcknowledged ?? false;
    this.#onClosed = onClosed;
    this.#backOff = new BackOff(BASE_S, CAP_S, connection.settings.uniform);
    this.#core = new SenderCore(this.#limits, this.#reportAcknowledged, {
      waits: (entry) => {
        this.#waitForAck(entry);
      },
      left: (entry) => {
        this.#deadlines.delete(entry);
        if (this.#core.empty) this.#whenAnswered?.();
      },
      streamCancelled: (cancellation) => options.onStreamCancelled?.(cancellation),
    });
  }

  /** Messages that wait to be written or answered. */
  get inFlight(): number {
    return this.#core.inFlight;
  }

  /**
   * Send one message; resolves when it was accepted. Waits for room first, when `maxInFlight` is reached.
   *
   * `waitForAckS` (needs `reportAcknowledged`): then wait that long for the client's acknowledgement, or for the message to
   * be dropped; the receipt's state says how far it came. Rejects with the sidecar's refusal, with TransportError when the
   * deadline passed, or with the signal's reason: given up, what was not written is not sent; what was may be accepted.
   */
  send(target: Target, message: OutgoingMessage, options: SendOptions = {}): Promise<Receipt> {
    return new Promise((resolve, reject) => {
      const { signal } = options;
      signal?.throwIfAborted();
      const entry = this.#begin(target, message, options, resolve, reject);
      if (signal === undefined) return;
      entry.onTold = onAbort(signal, () => {
        entry.giveUp(signal.reason as Error);
        this.#core.abandon(entry);
      });
    });
  }

  /** Queue the message; synchronous, so that the order is the callers'. */
  #begin(
    target: Target,
    message: OutgoingMessage,
    options: SendOptions,
    resolve: (receipt: Receipt) => void,
    reject: (error: Error) => void,
  ): Entry {
    if (this.#closing !== undefined) throw new Error("the sender is closed");
    const { waitForAckS, timeoutS = this.#connection.settings.timeoutS } = options;
    if (waitForAckS !== undefined && !this.#reportAcknowledged) {
      throw new TypeError("waitForAckS needs a sender with reportAcknowledged");
    }
    const bytes = encodeMessage(buildMessage(message));
    if (bytes.length > this.#limits.maxMessageBytes) {
      throw badRequest("message.payload", `at most ${this.#limits.maxMessageBytes} bytes`);
    }
    const key = this.#core.keyOf(target);
    const entry = this.#core.add(key, bytes, now() + timeoutS, waitForAckS, { resolve, reject });
    this.#deadlines.add(entry);
    if (this.#stream === undefined) this.#running ??= this.#run();
    else this.#stream.wake();
    return entry;
  }

  #waitForAck(entry: Entry): void {
    this.#deadlines.delete(entry);
    entry.due = now() + (entry.waitForAckS ?? 0);
    this.#deadlines.add(entry);
  }

  #expire(entry: Entry): void {
    entry.fail(deadlinePassed());
    this.#core.abandon(entry);
  }

  /**
   * Take no more, write what is queued, half-close, wait for the receipts, at most `timeoutS`. Idempotent.
   *
   * At once where nothing is queued or unanswered, also while the sidecar is away. What has no answer by then rejects with
   * TransportError, CANCELLED.
   */
  close({ timeoutS = CLOSE_TIMEOUT_S }: { readonly timeoutS?: number | undefined } = {}): Promise<void> {
    this.#closing ??= this.#close(timeoutS);
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(timeoutS: number): Promise<void> {
    const running = this.#running;
    if (running !== undefined) {
      const giveUp = (): void => {
        this.#giveUp();
      };
      this.#stream?.finish();
      const enough = setTimeout(giveUp, timeoutS * 1_000);
      await Promise.race([running, this.#answered()]);
      this.#stream?.finish(); // what expired meanwhile is not written any more: it may half-close
      const half = setTimeout(giveUp, this.#stream === undefined ? 0 : HALF_CLOSE_S * 1_000);
      await running;
      clearTimeout(half);
      clearTimeout(enough);
    }
    this.#giveUp();
    this.#deadlines.close();
    this.#onClosed(this);
  }

  #answered(): Promise<void> {
    return new Promise((resolve) => {
      this.#whenAnswered = resolve;
      if (this.#core.empty) resolve();
    });
  }

  #giveUp(): void {
    if (this.#over.signal.aborted) return;
    const error = new TransportError("CANCELLED", "", "the sender was closed");
    this.#over.abort(error);
    this.#core.failAll(error);
    this.#stream?.cancel();
  }

  // The stream

  /** Open a stream whenever there is something to write, until there is nothing or the sender closes. Never rejects. */
  async #run(): Promise<void> {
    try {
      while (this.#core.hasQueued()) {
        // A frame that is handed to a stream cannot be taken back: none is while nobody is there to read it.
        await orAborted(this.#connection.ready(), this.#over.signal);
        if (this.#core.hasQueued()) await this.#serve();
      }
    } catch (failed) {
      // The connection or the sender was closed.
      const error = failed instanceof TransportError ? failed : new TransportError("CANCELLED", "", "the client was closed");
      this.#core.failAll(error);
    } finally {
      this.#running = undefined;
    }
  }

  /** One stream, from its first frame to its end, and the wait before the next. It has no deadline: its messages have. */
  async #serve(): Promise<void> {
    const stream = new DeliverStream(this.#connection, this.#core, this.#backOff);
    this.#stream = stream;
    if (this.#closing !== undefined) stream.finish();
    stream.wake();
    const error = await stream.ended;
    this.#stream = undefined;
    this.#core.streamEnded(error, isPassing(error));
    if (this.#core.hasQueued()) await sleep(this.#backOff.nextS(error.retryAfterS), this.#over.signal);
  }
}

function orAborted(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const forget = onAbort(signal, () => {
      reject(signal.reason as Error);
    });
    void promise.then(resolve, reject).finally(forget);
  });
}
