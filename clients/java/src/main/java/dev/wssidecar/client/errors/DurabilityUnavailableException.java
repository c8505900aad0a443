package dev.wssidecar.client.errors;

/** The sidecar's store does not give the durability asked for. */
public class DurabilityUnavailableException extends FailedPreconditionException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public DurabilityUnavailableException(Refusal refusal) {
    super(refusal);
  }
}
