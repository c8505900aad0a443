package dev.wssidecar.client.errors;

/** This service may not make this call, or not for this tenant or scope. */
public class ServiceDeniedException extends PermissionDeniedException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public ServiceDeniedException(Refusal refusal) {
    super(refusal);
  }
}
