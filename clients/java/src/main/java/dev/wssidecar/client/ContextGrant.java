package dev.wssidecar.client;

/**
 * What an exchange gives.
 *
 * @param isolationKey the isolation key that the token opens
 * @param token the context token
 * @param context whose it is
 */
public record ContextGrant(String isolationKey, ContextToken token, UserContext context) {
  /**
   * Where a message goes by this grant, and to nobody but its user.
   *
   * @return the recipient
   */
  public Recipient recipient() {
    return Recipient.of(isolationKey, token.text()).expecting(context.userId());
  }
}
