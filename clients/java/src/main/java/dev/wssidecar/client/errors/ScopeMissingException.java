package dev.wssidecar.client.errors;

/** The token lacks the scope that the call needs. */
public class ScopeMissingException extends PermissionDeniedException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public ScopeMissingException(Refusal refusal) {
    super(refusal);
  }
}
