package dev.wssidecar.client.errors;

/** A limit is reached; {@link #retryAfter()} says when to try again. */
public class ResourceExhaustedException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public ResourceExhaustedException(Refusal refusal) {
    super(refusal);
  }
}
