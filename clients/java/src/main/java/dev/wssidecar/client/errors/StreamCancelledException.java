package dev.wssidecar.client.errors;

/** The client wants no more of this response stream. */
public class StreamCancelledException extends FailedPreconditionException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public StreamCancelledException(Refusal refusal) {
    super(refusal);
  }
}
