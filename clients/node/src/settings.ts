/** Where the sidecar is and how a channel to it is set up. Reads the environment; opens nothing. */

import { credentials as grpcCredentials } from "@grpc/grpc-js";
import type { ChannelCredentials, ChannelOptions } from "@grpc/grpc-js";
import type { Uniform } from "./back-off.js";

export const ENDPOINT_VARIABLE = "SIDECAR_GRPC_ENDPOINT";
export const SERVICE_TOKEN_VARIABLE = "SIDECAR_SERVICE_TOKEN";
export const DEFAULT_ENDPOINT = "127.0.0.1:50051";
export const DEFAULT_TIMEOUT_S = 5;
const DEFAULT_MAX_ATTEMPTS = 4;
const MAX_ANSWER_BYTES = 4 * 1_048_576;
/** Between two attempts to connect, and a fifth more at most. */
export const MAX_RECONNECT_MS = 300;

/** How to speak TLS. All are PEM. */
export interface TlsOptions {
  /** The authorities to trust. Default: Node's own. */
  readonly ca?: Buffer | string | undefined;
  /** This service's certificate chain, for mTLS. */
  readonly cert?: Buffer | string | undefined;
  /** Its private key. */
  readonly key?: Buffer | string | undefined;
  /** The name that the sidecar's certificate is for. Default: the endpoint's host. */
  readonly serverName?: string | undefined;
}

/** Where the sidecar is, and how to speak to it. */
export interface ClientOptions {
  /** `host:port` or `unix:/path`. Default: $SIDECAR_GRPC_ENDPOINT, else 127.0.0.1:50051. */
  readonly endpoint?: string | undefined;
  /** Default: $SIDECAR_SERVICE_TOKEN, else none. Sent only with the calls that need it. */
  readonly serviceToken?: string | undefined;
  /** Default: plain TCP, or a Unix socket. */
  readonly tls?: TlsOptions | undefined;
  /** Credentials of @grpc/grpc-js, instead of `tls`. */
  readonly credentials?: ChannelCredentials | undefined;
  /** The deadline of every call over all its tries, in seconds. Default: 5. */
  readonly timeoutS?: number | undefined;
  /** How often a call is made at most. Default: 4. */
  readonly maxAttempts?: number | undefined;
  /** The randomness of the back-off. */
  readonly uniform?: Uniform | undefined;
}

/** What a connection is made of. The service token is a secret: settings are not printed. */
export interface Settings {
  readonly endpoint: string;
  readonly serviceToken: string;
  readonly credentials: ChannelCredentials;
  readonly channelOptions: ChannelOptions;
  readonly timeoutS: number;
  readonly maxAttempts: number;
  readonly uniform: Uniform;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** What was given, then what the environment says, then the defaults. Throws RangeError or TypeError for what cannot be. */
export function settingsFrom(options: ClientOptions, environment: Environment = process.env): Settings {
  const { tls, timeoutS = DEFAULT_TIMEOUT_S, maxAttempts = DEFAULT_MAX_ATTEMPTS } = options;
  const endpoint = [options.endpoint, environment[ENDPOINT_VARIABLE]].find(Boolean) ?? DEFAULT_ENDPOINT;
  if (!/^unix:.|:\d+$/.test(endpoint)) throw new TypeError("endpoint is host:port or unix:/path");
  if (!(timeoutS > 0)) throw new RangeError("timeoutS is more than 0");
  if (!(maxAttempts >= 1)) throw new RangeError("maxAttempts is at least 1");
  if (tls !== undefined && options.credentials !== undefined) throw new TypeError("give either tls or credentials");
  return {
    endpoint,
    serviceToken: options.serviceToken ?? environment[SERVICE_TOKEN_VARIABLE] ?? "",
    credentials: options.credentials ?? credentialsFrom(tls),
    channelOptions: channelOptions(tls?.serverName),
    timeoutS,
    maxAttempts,
    uniform: options.uniform ?? Math.random,
  };
}

function credentialsFrom(tls: TlsOptions | undefined): ChannelCredentials {
  if (tls === undefined) return grpcCredentials.createInsecure();
  return grpcCredentials.createSsl(pem(tls.ca), pem(tls.key), pem(tls.cert));
}

function pem(value: Buffer | string | undefined): Buffer | null {
  return value === undefined ? null : Buffer.from(value);
}

/**
 * What gRPC is told.
 *
 * gRPC's own retries stay as they are, which is for calls that never left this process or that the sidecar's transport says
 * it has not seen: those are safe for every method. Retries that a service config could ask for are not wanted: they know
 * nothing of RetryInfo.
 */
function channelOptions(serverName: string | undefined): ChannelOptions {
  return {
    // A connection that a network or a stopped process holds open is found out within 20 s. The sidecar takes pings
    // every 10 s, with or without calls.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.max_receive_message_length": MAX_ANSWER_BYTES,
    "grpc.max_send_message_length": -1, // the sidecar's limit is the sidecar's to say
    // The sidecar is next door: it is back as soon as it has started.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": MAX_RECONNECT_MS,
    "grpc.service_config_disable_resolution": 1,
    // Tokens do not go through somebody's http_proxy to a sidecar on the same host.
    "grpc.enable_http_proxy": 0,
    // A client that is closed leaves no connection behind.
    "grpc.use_local_subchannel_pool": 1,
    ...(serverName === undefined
      ? {}
      : { "grpc.ssl_target_name_override": serverName, "grpc.default_authority": serverName }),
  };
}
