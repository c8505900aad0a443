package dev.wssidecar.client.errors;

/** The sidecar is about to stop and takes no more of this. */
public class DrainingException extends UnavailableException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public DrainingException(Refusal refusal) {
    super(refusal);
  }
}
