package dev.wssidecar.client.errors;

/** The sidecar cannot reach its store. */
public class StorageUnavailableException extends UnavailableException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public StorageUnavailableException(Refusal refusal) {
    super(refusal);
  }
}
