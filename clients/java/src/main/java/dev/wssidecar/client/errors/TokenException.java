package dev.wssidecar.client.errors;

/** The context token (or user token, or service token) is missing, not good, expired or revoked. */
public class TokenException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public TokenException(Refusal refusal) {
    super(refusal);
  }
}
