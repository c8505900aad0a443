package dev.wssidecar.client.errors;

/** Something unforeseen in the sidecar; its log knows more under {@link #incidentId()}. Not definite. */
public class InternalException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public InternalException(Refusal refusal) {
    super(refusal);
  }

  @Override
  protected boolean tellsAll() {
    return false;
  }
}
