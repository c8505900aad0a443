/** What a sender holds and writes at most. */

const MIB = 1_048_576;
const MAX_LANES = 1_024;
const MAX_FRAME_ITEMS = 1_000;

export interface SenderLimits {
  /** Messages that are written and have no answer, or wait to be written; further sends wait. */
  readonly maxInFlight: number;
  /** Tokens that have a lane at a time; the lane that was not used for longest gives way. */
  readonly maxLanes: number;
  readonly maxFrameItems: number;
  readonly maxFrameBytes: number;
  /**
   * A larger one is refused here, because a frame over the sidecar's `grpc.max_request_bytes` (4 MiB) would break the
   * stream for everybody's messages.
   */
  readonly maxMessageBytes: number;
}

const DEFAULTS: SenderLimits = {
  maxInFlight: 4_096,
  maxLanes: MAX_LANES,
  maxFrameItems: MAX_FRAME_ITEMS,
  maxFrameBytes: MIB,
  maxMessageBytes: 4 * MIB - 65_536,
};

const MOST: SenderLimits = {
  maxInFlight: 1_000_000,
  maxLanes: MAX_LANES,
  maxFrameItems: MAX_FRAME_ITEMS,
  maxFrameBytes: 64 * MIB,
  maxMessageBytes: 64 * MIB,
};

/** The limits given, and the defaults of the others. Throws RangeError for what cannot be. */
export function limitsFrom(given: Partial<SenderLimits> = {}): SenderLimits {
  const limits = { ...DEFAULTS, ...given };
  for (const name of Object.keys(DEFAULTS) as (keyof SenderLimits)[]) {
    if (!(limits[name] >= 1 && limits[name] <= MOST[name])) throw new RangeError(`${name} is 1 to ${MOST[name]}`);
  }
  return limits;
}
