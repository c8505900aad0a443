package dev.wssidecar.client.errors;

/** The token's connection context has ended. Says nothing of an earlier try. */
public class ManagerGoneException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public ManagerGoneException(Refusal refusal) {
    super(refusal);
  }
}
