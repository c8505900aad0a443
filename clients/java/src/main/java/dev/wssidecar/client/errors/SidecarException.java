package dev.wssidecar.client.errors;

import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.Optional;

/**
 * A call was refused or failed. Catch a subclass or switch on {@link #reason()}; expect reasons that this version does not
 * know: they come as the class of their status, or as this one.
 */
public class SidecarException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  private final Refusal refusal;
  private volatile boolean unansweredBefore;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public SidecarException(Refusal refusal) {
    super(text(refusal));
    this.refusal = refusal;
  }

  /**
   * The gRPC status.
   *
   * @return its code
   */
  public Status.Code code() {
    return refusal.code();
  }

  /**
   * The catalogue's name of the reason.
   *
   * @return such as {@code OUTBOX_FULL}; empty where the transport failed
   */
  public String reason() {
    return refusal.reason();
  }

  /**
   * When to try again, where a retry helps.
   *
   * @return what the sidecar asked for
   */
  public Optional<Duration> retryAfter() {
    return Optional.ofNullable(refusal.retryAfter());
  }

  /**
   * What the sidecar's log calls what went wrong.
   *
   * @return empty but for {@link InternalException}
   */
  public String incidentId() {
    return refusal.incidentId();
  }

  /**
   * The fields at fault.
   *
   * @return empty but for {@link BadRequestException}
   */
  public List<Refusal.Violation> violations() {
    return refusal.violations();
  }

  /**
   * All that was said.
   *
   * @return the refusal
   */
  public Refusal refusal() {
    return refusal;
  }

  /**
   * Whether nothing was changed. Where it is false something may have been: repeat with the same message_id, or not at
   * all. A refusal speaks of its own try: behind one that had no answer it is not definite either.
   *
   * @return true when nothing was changed
   */
  public boolean definite() {
    return tellsAll() && !unansweredBefore;
  }

  /**
   * Whether the answer itself says that nothing was changed by its own try.
   *
   * @return true but for the few that cannot know
   */
  protected boolean tellsAll() {
    return true;
  }

  /** The same was tried before, and that try had no answer. Called by the client's own retries. */
  public final void followsUnanswered() {
    unansweredBefore = true;
  }

  private static String text(Refusal refusal) {
    String name = refusal.reason().isEmpty() ? refusal.code().name() : refusal.reason();
    StringBuilder text = new StringBuilder(name).append(": ").append(refusal.message());
    for (Refusal.Violation each : refusal.violations()) {
      text.append("; ").append(each.field()).append(": ").append(each.description());
    }
    if (!refusal.incidentId().isEmpty()) {
      text.append(" (incident ").append(refusal.incidentId()).append(')');
    }
    return text.toString();
  }
}
