package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarExceptions;
import dev.wssidecar.client.errors.TransportException;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.Status;
import sidecar.api.v1.DeliverRequest;
import sidecar.api.v1.DeliverResponse;
import sidecar.api.v1.DeliveryServiceGrpc;

/** One Deliver call. It has no deadline: its messages have. */
final class DeliverStream extends ClientCall.Listener<DeliverResponse> {
  /**
   * Ready means: what was written has left for the socket. So while a write is under way, or the sidecar's flow control
   * holds, the next messages gather into one frame; gRPC's own 32 KiB would take many small ones first.
   */
  private static final int READY_BYTES = 1;

  private static final int READ_AHEAD = 4;

  private final Sender sender;
  private ClientCall<DeliverRequest, DeliverResponse> call;
  private boolean leaving;
  private boolean used;

  DeliverStream(Sender sender) {
    this.sender = sender;
  }

  /**
   * Waits for a connection, if need be. A frame that is handed to a call cannot be taken back; it is not ready, and none is,
   * while nobody is there to read it.
   */
  void start(Channel channel) {
    CallOptions options =
        CallOptions.DEFAULT.withWaitForReady().withOnReadyThreshold(READY_BYTES);
    call = channel.newCall(DeliveryServiceGrpc.getDeliverMethod(), options);
    call.start(this, new Metadata());
    call.request(READ_AHEAD);
  }

  boolean isReady() {
    return !leaving && call.isReady();
  }

  /** Something was written. */
  boolean used() {
    return used;
  }

  /** By one thread at a time. */
  void write(DeliverRequest frame) {
    used = true;
    try {
      call.sendMessage(frame);
    } catch (IllegalStateException over) {
      // The call has ended; onClose says why, and what had no answer is sent again.
    }
  }

  /** Say that nothing more will come. Idempotent. */
  void leave() {
    if (!leaving) {
      leaving = true;
      call.halfClose();
    }
  }

  void cancel() {
    call.cancel("the sender was closed", null);
  }

  @Override
  public void onReady() {
    sender.onReady();
  }

  @Override
  public void onMessage(DeliverResponse response) {
    call.request(1);
    sender.onFrame(response);
  }

  @Override
  public void onClose(Status status, Metadata trailers) {
    sender.onEnd(
        this,
        status.isOk()
            ? new TransportException(Status.Code.UNAVAILABLE, "the stream ended")
            : SidecarExceptions.from(status, trailers));
  }
}
