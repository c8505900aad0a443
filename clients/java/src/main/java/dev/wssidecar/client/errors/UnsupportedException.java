package dev.wssidecar.client.errors;

/** In the contract, but not served by this sidecar. */
public class UnsupportedException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public UnsupportedException(Refusal refusal) {
    super(refusal);
  }
}
