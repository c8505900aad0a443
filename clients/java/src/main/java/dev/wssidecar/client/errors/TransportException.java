package dev.wssidecar.client.errors;

import io.grpc.Status;

/** No answer of the sidecar's: a deadline that passed, a connection that broke, a call that was cancelled. */
public class TransportException extends SidecarException {
  private static final long serialVersionUID = 1L;

  /**
   * Says that refusal.
   *
   * @param refusal what was answered
   */
  public TransportException(Refusal refusal) {
    super(refusal);
  }

  /**
   * A failure without a word of the sidecar's.
   *
   * @param code the gRPC status
   * @param message what happened
   */
  public TransportException(Status.Code code, String message) {
    super(Refusal.of(code, "", message));
  }

  /** Only of a method that the sidecar does not have. */
  @Override
  protected boolean tellsAll() {
    return code() == Status.Code.UNIMPLEMENTED;
  }
}
