/** Whom an agent tells what nobody asked for. Never a token or a payload. */
export interface Logger {
  debug(text: string): void;
  warn(text: string): void;
  /** `cause`: what a handler has thrown. */
  error(text: string, cause?: unknown): void;
}

/** Standard error, without what only a search for a fault needs. */
export const consoleLogger: Logger = {
  debug: () => undefined,
  warn: (text) => {
    console.warn(`ws-sidecar: ${text}`);
  },
  error: (text, cause) => {
    if (cause === undefined) console.error(`ws-sidecar: ${text}`);
    else console.error(`ws-sidecar: ${text}:`, cause);
  },
};
