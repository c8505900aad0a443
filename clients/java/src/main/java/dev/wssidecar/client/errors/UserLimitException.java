package dev.wssidecar.client.errors;

/** A limit of the token's own user. */
public class UserLimitException extends ResourceExhaustedException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public UserLimitException(Refusal refusal) {
    super(refusal);
  }
}
