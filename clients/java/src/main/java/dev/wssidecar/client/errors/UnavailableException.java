package dev.wssidecar.client.errors;

/** Not now; {@link #retryAfter()} says when to try again. */
public class UnavailableException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public UnavailableException(Refusal refusal) {
    super(refusal);
  }
}
