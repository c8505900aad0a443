/**
 * A response stream: an answer in chunks, in order and each once, with an end that the client sees.
 *
 * The sidecar takes only the chunk that is next. So a chunk whose fate is not known is sent again under its own index
 * before anything else is, whatever broke in between.
 */

import type { AgentContext } from "./agent-context.js";
import type { Answering } from "./answering.js";
import { BackOff } from "./back-off.js";
import { now, sleep } from "./clock.js";
import { errorFromReason } from "./error-catalogue.js";
import { ManagerGone, NoAgent, ResourceExhausted, SidecarError, StreamCancelled, Unavailable } from "./errors.js";
import { encodeJson, newMessageId } from "./messages.js";
import type { Content, EncodedContent } from "./messages.js";
import { BASE_S, CAP_S } from "./retries.js";
import type { Receipt, StreamState } from "./values.js";

const TIMEOUT_S = 30;
const FAIL_TIMEOUT_S = 5;
const NOTHING = { payload: new Uint8Array(), contentType: "json" } as const;

/** What a response stream may be told. */
export interface ReplyOptions {
  /** An identifier: of every chunk. */
  readonly eventType?: string | undefined;
  /** An identifier. Default: made up. */
  readonly streamId?: string | undefined;
  /** How long a chunk is tried, in seconds. Default: 30. */
  readonly timeoutS?: number | undefined;
}

/** One chunk: `json`, `text`, `binary` or encoded bytes, and headers. */
export type Chunk = Content & { readonly headers?: Readonly<Record<string, string>> | undefined };

interface NumberedChunk {
  readonly index: number;
  readonly messageId: string;
  readonly content: EncodedContent | Content;
  readonly state: StreamState;
  readonly headers: Readonly<Record<string, string>> | undefined;
}

/** One answer. Made by `InboundMessage.reply`. Chunks are sent one after the other. */
export class ReplyStream {
  /** The stream's id: the client names it to cancel. */
  readonly id: string;
  readonly #context: AgentContext;
  readonly #answering: Answering;
  readonly #replyTo: string;
  readonly #eventType: string | undefined;
  readonly #timeoutS: number;
  #nextIndex = 0;
  #unsettled: NumberedChunk | undefined;
  #turn: Promise<unknown> = Promise.resolve();
  #over = false;

  /** @internal */
  constructor(context: AgentContext, answering: Answering, replyTo: string, options: ReplyOptions) {
    this.id = options.streamId ?? newMessageId();
    this.#context = context;
    this.#answering = answering;
    this.#replyTo = replyTo;
    this.#eventType = options.eventType;
    this.#timeoutS = options.timeoutS ?? TIMEOUT_S;
    answering.streams.set(this.id, { finish: () => this.#finish(), break: () => this.#break() });
  }

  /** Whether the stream has had its last chunk, or has been cancelled. */
  get over(): boolean {
    return this.#over;
  }

  /**
   * Send the next chunk; resolves when the sidecar has accepted it. Tried again until the stream's `timeoutS` where the
   * sidecar cannot take it now or the client is slow. Rejects with StreamCancelled when the client wants no more, and with
   * the signal's reason when the agent stops: then the chunk may be taken, before whatever is next.
   */
  async send(chunk: Chunk): Promise<Receipt> {
    return this.#inTurn("open", chunk, this.#timeoutS, this.#answering.signal);
  }

  /** Send the last chunk, which may say nothing. The handler's return does it by itself. */
  async end(chunk: Chunk = NOTHING): Promise<Receipt> {
    return this.#inTurn("end", chunk, this.#timeoutS, this.#answering.signal);
  }

  /** Send the last chunk of an answer that failed; what it says of the cause is yours to choose. */
  async fail(chunk: Chunk = NOTHING): Promise<Receipt> {
    return this.#inTurn("error", chunk, this.#timeoutS, undefined);
  }

  async #finish(): Promise<void> {
    if (!this.#over) await this.end();
  }

  async #break(): Promise<void> {
    if (this.#over || this.#answering.cancelled || this.#context.ended) return;
    try {
      await this.#inTurn("error", NOTHING, Math.min(FAIL_TIMEOUT_S, this.#timeoutS), undefined);
    } catch {
      return; // what goes wrong here says less than what went wrong in the handler
    }
  }

  /** One after the other, in the order in which they were asked for. */
  #inTurn(state: StreamState, chunk: Chunk, timeoutS: number, signal: AbortSignal | undefined): Promise<Receipt> {
    const put = (): Promise<Receipt> => this.#put(state, chunk, timeoutS, signal);
    const turn = this.#turn.then(put);
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  async #put(
    state: StreamState,
    { headers, ...content }: Chunk,
    timeoutS: number,
    signal: AbortSignal | undefined,
  ): Promise<Receipt> {
    if (this.#over) throw new Error("the stream is over");
    try {
      if (this.#answering.cancelled) throw errorFromReason("STREAM_CANCELLED", "the client has cancelled the stream");
      const deadline = now() + timeoutS;
      if (this.#unsettled !== undefined) await this.#settle(this.#unsettled, deadline, signal);
      // Encoded here: what is sent again is the same, whatever became of the caller's value.
      const encoded = content.json === undefined ? content : { payload: encodeJson(content.json) };
      const chunk = { index: this.#nextIndex, messageId: newMessageId(), content: encoded, state, headers };
      const receipt = await this.#settle(chunk, now() + timeoutS, signal);
      this.#over = state !== "open";
      return receipt;
    } catch (error) {
      if (error instanceof StreamCancelled) {
        this.#over = true;
        this.#answering.cancel();
      }
      throw error;
    }
  }

  /** Send the chunk until it is taken or refused; else it is kept, and is the first to be sent again. */
  async #settle(chunk: NumberedChunk, deadline: number, signal: AbortSignal | undefined): Promise<Receipt> {
    this.#unsettled = chunk;
    const backOff = new BackOff(BASE_S, CAP_S);
    for (;;) {
      try {
        const receipt = await this.#send(chunk, Math.max(deadline - now(), 0.001), signal);
        this.#unsettled = undefined;
        this.#nextIndex = chunk.index + 1;
        return receipt;
      } catch (error) {
        if (!(error instanceof SidecarError)) throw error;
        const waitS = backOff.nextS(error.retryAfterS);
        if (!isPassing(error) || now() + waitS >= deadline) {
          if (error.definite || error instanceof ManagerGone) this.#unsettled = undefined;
          throw error;
        }
        await sleep(waitS, signal);
      }
    }
  }

  async #send(chunk: NumberedChunk, timeoutS: number, signal: AbortSignal | undefined): Promise<Receipt> {
    const { index, messageId, content, state, headers } = chunk;
    const stream = { streamId: this.id, index, state };
    const options = { messageId, eventType: this.#eventType, replyTo: this.#replyTo, headers, stream };
    return this.#context.send({ ...content, ...options }, { timeoutS, signal });
  }
}

/** Whether the same chunk may be taken later. A full outbox is a client that reads too slowly: the agent waits. */
function isPassing(error: SidecarError): boolean {
  if (error instanceof ResourceExhausted) return error.retryAfterS !== undefined;
  return error instanceof Unavailable && !(error instanceof NoAgent);
}
