package dev.wssidecar.client.errors;

/** The state of things does not allow this. */
public class FailedPreconditionException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public FailedPreconditionException(Refusal refusal) {
    super(refusal);
  }
}
