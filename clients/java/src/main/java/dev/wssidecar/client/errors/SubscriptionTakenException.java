package dev.wssidecar.client.errors;

/** Another service holds this subscription. */
public class SubscriptionTakenException extends AlreadyExistsException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public SubscriptionTakenException(Refusal refusal) {
    super(refusal);
  }
}
