package dev.wssidecar.client.errors;

/** The item names a lane that is not open on this stream. */
public class LaneNotOpenException extends FailedPreconditionException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public LaneNotOpenException(Refusal refusal) {
    super(refusal);
  }
}
