package dev.wssidecar.client.errors;

/** A field is missing, over its limit or not what it says; {@link #violations()} names it and the rule. */
public class BadRequestException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public BadRequestException(Refusal refusal) {
    super(refusal);
  }
}
