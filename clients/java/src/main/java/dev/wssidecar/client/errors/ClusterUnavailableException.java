package dev.wssidecar.client.errors;

/** The sidecar cannot reach its cluster. */
public class ClusterUnavailableException extends UnavailableException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public ClusterUnavailableException(Refusal refusal) {
    super(refusal);
  }
}
