package dev.wssidecar.client.errors;

import io.grpc.Status;
import java.io.Serializable;
import java.time.Duration;
import java.util.List;
import java.util.Objects;

/**
 * What a {@link SidecarException} says.
 *
 * @param code the gRPC status
 * @param reason the catalogue's name, such as {@code OUTBOX_FULL}; empty where the transport failed
 * @param message the sidecar's fixed text, which holds nothing of the request
 * @param retryAfter when a retry helps; null where the sidecar did not say
 * @param incidentId what the sidecar's log calls it; empty but for INTERNAL
 * @param violations the fields at fault
 */
public record Refusal(
    Status.Code code,
    String reason,
    String message,
    Duration retryAfter,
    String incidentId,
    List<Violation> violations)
    implements Serializable {
  public Refusal {
    Objects.requireNonNull(code, "code");
    Objects.requireNonNull(reason, "reason");
    Objects.requireNonNull(message, "message");
    Objects.requireNonNull(incidentId, "incidentId");
    violations = List.copyOf(violations);
  }

  /**
   * A refusal without details.
   *
   * @param code the gRPC status
   * @param reason the catalogue's name, or empty
   * @param message the text
   * @return the refusal
   */
  public static Refusal of(Status.Code code, String reason, String message) {
    return new Refusal(code, reason, message, null, "", List.of());
  }

  /**
   * One field at fault.
   *
   * @param field its name
   * @param description the rule that it breaks
   */
  public record Violation(String field, String description) implements Serializable {}
}
