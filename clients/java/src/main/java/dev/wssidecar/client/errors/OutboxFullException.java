package dev.wssidecar.client.errors;

/** The context's outbox is full: its client is away or slow. */
public class OutboxFullException extends ResourceExhaustedException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public OutboxFullException(Refusal refusal) {
    super(refusal);
  }
}
