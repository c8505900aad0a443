package dev.wssidecar.client.errors;

/** The name is taken. */
public class AlreadyExistsException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public AlreadyExistsException(Refusal refusal) {
    super(refusal);
  }
}
