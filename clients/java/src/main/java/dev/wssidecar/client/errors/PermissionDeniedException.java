package dev.wssidecar.client.errors;

/** A good token that does not open this. */
public class PermissionDeniedException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public PermissionDeniedException(Refusal refusal) {
    super(refusal);
  }
}
