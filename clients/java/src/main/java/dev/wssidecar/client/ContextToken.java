package dev.wssidecar.client;

import java.time.Instant;

/**
 * A context token, a secret: it is not printed.
 *
 * @param text the token itself
 * @param expireTime when it expires
 */
public record ContextToken(String text, Instant expireTime) {
  @Override
  public String toString() {
    return "ContextToken[expireTime=" + expireTime + "]";
  }
}
