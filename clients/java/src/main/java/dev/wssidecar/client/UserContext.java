package dev.wssidecar.client;

import java.time.Instant;
import java.util.List;
import java.util.Map;

/**
 * Who a connection context belongs to. Fixed when the context is made.
 *
 * @param tenantId the tenant: the user token's claim {@code tid}, or {@code default}
 * @param userId the user within the tenant: the user token's claim {@code sub}
 * @param sessionId the user token's claim {@code sid}, or made up
 * @param connectionId names this context, stable across resumes
 * @param requestId the request that made the context, for tracing
 * @param createdTime when the context was made
 * @param permissions what the user token says that the user may do
 * @param metadata what else the handshake said
 */
public record UserContext(
    String tenantId,
    String userId,
    String sessionId,
    String connectionId,
    String requestId,
    Instant createdTime,
    List<String> permissions,
    Map<String, String> metadata) {
  public UserContext {
    permissions = List.copyOf(permissions);
    metadata = Map.copyOf(metadata);
  }
}
