package dev.wssidecar.client.errors;

/** The message_id was used for a message with other content. */
public class MessageIdReusedException extends AlreadyExistsException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public MessageIdReusedException(Refusal refusal) {
    super(refusal);
  }
}
