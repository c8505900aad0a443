/** One channel to the sidecar: calls by their method definitions, each given up when the connection is closed. */

import { Client, Metadata } from "@grpc/grpc-js";
import type { ClientDuplexStream, MethodDefinition, ServiceError } from "@grpc/grpc-js";
import { onAbort } from "./abort.js";
import { now } from "./clock.js";
import { TransportError } from "./errors.js";
import { errorFromCall } from "./error-catalogue.js";
import { isServing, THE_WHOLE, WATCH } from "./health.js";
import type { Settings } from "./settings.js";
import { injectTrace } from "./telemetry.js";

/** The metadata that a call carries a token in, which was checked; none where it stands in the request. */
export type TokenHeader = readonly [name: "x-context-token" | "x-service-token", token: string] | undefined;

/** A call that can be given up. */
interface Cancellable {
  cancel(): void;
}

/** The channel. It connects at the first call. */
export class Connection {
  readonly settings: Settings;
  readonly #client: Client;
  readonly #calls = new Set<Cancellable>();
  readonly #closing = new AbortController();

  constructor(settings: Settings) {
    this.settings = settings;
    this.#client = new Client(settings.endpoint, settings.credentials, settings.channelOptions);
  }

  /** Aborted when the connection is closed, with the error that its calls then end with. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  /** Make one call. `deadline`: monotonic seconds. Rejects with a SidecarError, or the signal's reason. */
  unary<Request, Response>(
    method: MethodDefinition<Request, Response>,
    request: Request,
    token: TokenHeader,
    deadline: number,
    signal: AbortSignal | undefined,
  ): Promise<Response> {
    return new Promise((resolve, reject) => {
      this.#closing.signal.throwIfAborted();
      signal?.throwIfAborted();
      const answered = (failed: ServiceError | null, response?: Response): void => {
        this.#calls.delete(call);
        forget?.();
        if (failed === null) resolve(response as Response);
        else if (signal?.aborted === true) reject(signal.reason as Error);
        else reject(this.closing.aborted ? (this.closing.reason as Error) : errorFromCall(failed));
      };
      const call = this.#client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        metadataFor(token),
        { deadline: atDate(deadline) },
        answered,
      );
      this.#calls.add(call);
      const forget =
        signal &&
        onAbort(signal, () => {
          call.cancel();
        });
    });
  }

  /** Open a stream of both directions. It has no deadline. */
  stream<Request, Response>(
    method: MethodDefinition<Request, Response>,
    token: TokenHeader,
  ): ClientDuplexStream<Request, Response> {
    this.#closing.signal.throwIfAborted();
    const { path, requestSerialize, responseDeserialize } = method;
    const call = this.#client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, metadataFor(token));
    this.#calls.add(call);
    call.once("status", () => {
      this.#calls.delete(call);
    });
    return call;
  }

  /** Watch the sidecar's health until it serves; true then, an error where the watch ends before. */
  serving(deadline: number, signal: AbortSignal | undefined): Promise<true | TransportError> {
    return new Promise((resolve, reject) => {
      this.#closing.signal.throwIfAborted();
      signal?.throwIfAborted();
      const metadata = new Metadata({ waitForReady: true });
      const raw = (bytes: Buffer): Buffer => bytes;
      const options = { deadline: atDate(deadline) };
      const call = this.#client.makeServerStreamRequest(WATCH, raw, raw, THE_WHOLE, metadata, options);
      const cancel = (): void => {
        call.cancel();
      };
      this.#calls.add(call);
      const forget = signal && onAbort(signal, cancel);
      call.on("data", (response: Buffer) => {
        if (!isServing(response)) return;
        resolve(true);
        cancel();
      });
      call.on("error", () => undefined); // what it says comes again as the status
      call.once("status", (status) => {
        this.#calls.delete(call);
        forget?.();
        if (signal?.aborted === true) reject(signal.reason as Error);
        else if (this.closing.aborted) reject(this.closing.reason as Error);
        else resolve(new TransportError(errorFromCall(status).code, "", "the sidecar is not ready"));
      });
    });
  }

  /** Resolves when there is a connection, however long that takes. Rejects when this one is closed. */
  ready(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#closing.signal.throwIfAborted();
      this.#client.waitForReady(Infinity, (failed) => {
        if (failed === undefined) resolve();
        else reject(failed);
      });
    });
  }

  /** Give up every call that is under way, and disconnect. Idempotent. */
  close(): void {
    if (this.closing.aborted) return;
    this.#closing.abort(new TransportError("CANCELLED", "", "the client was closed"));
    for (const call of [...this.#calls]) call.cancel();
    this.#client.close();
  }
}

function metadataFor(token: TokenHeader): Metadata {
  const metadata = new Metadata();
  if (token !== undefined) metadata.set(token[0], token[1]);
  injectTrace(metadata);
  return metadata;
}

/** gRPC's deadlines are times of day. */
function atDate(deadline: number): number {
  return Date.now() + Math.max(deadline - now(), 0.001) * 1_000;
}
