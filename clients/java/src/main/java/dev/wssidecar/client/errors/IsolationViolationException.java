package dev.wssidecar.client.errors;

/** The token's isolation key is not the request's, or the expected user is another. Says nothing of either. */
public class IsolationViolationException extends PermissionDeniedException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public IsolationViolationException(Refusal refusal) {
    super(refusal);
  }
}
