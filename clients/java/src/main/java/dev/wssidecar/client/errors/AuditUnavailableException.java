package dev.wssidecar.client.errors;

/** The audit trail cannot be written, and this call needs its record first. */
public class AuditUnavailableException extends UnavailableException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public AuditUnavailableException(Refusal refusal) {
    super(refusal);
  }
}
