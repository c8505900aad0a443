package dev.wssidecar.client;

import java.util.Objects;

/**
 * Where a message goes: one connection context, the context token that opens it, and the user that is meant. The token is
 * a secret and not printed. Immutable; keep it as long as you keep the token.
 */
public final class Recipient {
  private final String isolationKey;
  private final String contextToken;
  private final String expectedUserId;
  private final int hash;
  private final boolean tokenGood;

  private Recipient(String isolationKey, String contextToken, String expectedUserId) {
    this.isolationKey = Objects.requireNonNull(isolationKey, "isolationKey");
    this.contextToken = Objects.requireNonNull(contextToken, "contextToken");
    this.expectedUserId = Objects.requireNonNull(expectedUserId, "expectedUserId");
    this.hash = Objects.hash(isolationKey, contextToken, expectedUserId);
    this.tokenGood = Tokens.good(contextToken);
  }

  /**
   * The context of that key, opened by that token. Nothing is checked here: a send says what is wrong.
   *
   * @param isolationKey the context's isolation key
   * @param contextToken its context token
   * @return the recipient
   */
  public static Recipient of(String isolationKey, String contextToken) {
    return new Recipient(isolationKey, contextToken, "");
  }

  /**
   * The same, for that user only: where the token is another's, nothing is sent (ISOLATION_VIOLATION). Take the user from
   * your own authentication of the request that you answer, never from the request's body.
   *
   * @param userId the user that is meant; empty is not checked
   * @return the recipient
   */
  public Recipient expecting(String userId) {
    return new Recipient(isolationKey, contextToken, userId);
  }

  /**
   * The context's isolation key.
   *
   * @return the key, opaque
   */
  public String isolationKey() {
    return isolationKey;
  }

  /**
   * The user that is meant.
   *
   * @return the user, or empty
   */
  public String expectedUserId() {
    return expectedUserId;
  }

  /**
   * The context token, a secret.
   *
   * @return the token
   */
  public String contextToken() {
    return contextToken;
  }

  /** Throws TOKEN_INVALID for a token that gRPC cannot carry. */
  Recipient checked() {
    if (!tokenGood) {
      throw Tokens.invalid();
    }
    return this;
  }

  @Override
  public boolean equals(Object other) {
    return this == other
        || other instanceof Recipient that
            && hash == that.hash
            && isolationKey.equals(that.isolationKey)
            && contextToken.equals(that.contextToken)
            && expectedUserId.equals(that.expectedUserId);
  }

  @Override
  public int hashCode() {
    return hash;
  }

  @Override
  public String toString() {
    return "Recipient[isolationKey=" + isolationKey + ", expectedUserId=" + expectedUserId + "]";
  }
}
