package dev.wssidecar.client.errors;

/** The chunk's index is ahead of the next. */
public class StreamOutOfOrderException extends FailedPreconditionException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public StreamOutOfOrderException(Refusal refusal) {
    super(refusal);
  }
}
