package dev.wssidecar.client.errors;

/** No agent service takes a user's message. */
public class NoAgentException extends UnavailableException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public NoAgentException(Refusal refusal) {
    super(refusal);
  }
}
