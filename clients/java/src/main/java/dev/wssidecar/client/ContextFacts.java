package dev.wssidecar.client;

import java.time.Instant;
import java.util.List;

/**
 * What a context token opens.
 *
 * @param isolationKey the isolation key that the token names
 * @param context whose it is
 * @param scopes what the token allows, sorted
 * @param expireTime when the token expires
 */
public record ContextFacts(
    String isolationKey, UserContext context, List<String> scopes, Instant expireTime) {
  public ContextFacts {
    scopes = List.copyOf(scopes);
  }
}
