package dev.wssidecar.client.errors;

/** The agent service that takes a user's message has no room for it now. */
public class AgentBusyException extends ResourceExhaustedException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public AgentBusyException(Refusal refusal) {
    super(refusal);
  }
}
