package dev.wssidecar.client.errors;

/** The response stream has had its last chunk. */
public class StreamEndedException extends FailedPreconditionException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public StreamEndedException(Refusal refusal) {
    super(refusal);
  }
}
