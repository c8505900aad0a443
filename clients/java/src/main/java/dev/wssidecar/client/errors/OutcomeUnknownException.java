package dev.wssidecar.client.errors;

/** The store did not say whether it took the message. Not definite. */
public class OutcomeUnknownException extends UnavailableException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public OutcomeUnknownException(Refusal refusal) {
    super(refusal);
  }

  @Override
  protected boolean tellsAll() {
    return false;
  }
}
