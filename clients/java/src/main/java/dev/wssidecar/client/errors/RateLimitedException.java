package dev.wssidecar.client.errors;

/** Too many calls, messages or attempts for now. */
public class RateLimitedException extends ResourceExhaustedException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public RateLimitedException(Refusal refusal) {
    super(refusal);
  }
}
