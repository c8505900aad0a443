package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.SidecarExceptions;
import dev.wssidecar.client.errors.TransportException;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.List;
import sidecar.api.v1.AgentServiceGrpc;
import sidecar.api.v1.AttachRequest;
import sidecar.api.v1.AttachResponse;

/**
 * One Attach call: registers the worker, hands its events on, says what is acknowledged and how many more may come. What is
 * to be said gathers while the call is not ready.
 */
final class AgentStream extends ClientCall.Listener<AttachResponse> {
  private static final int MAX_ACKNOWLEDGED = 10_000; // delivery ids in one frame
  static final int MAX_FRAME_EVENTS = 100; // in one frame, as many as the sidecar puts in one
  private static final int READ_AHEAD = 4;

  /** What an agent is told by its stream, in order. */
  interface Events {
    void registered(AgentStream stream);

    void event(AgentStream stream, AttachResponse.Event event);

    /** {@code error} is null after {@code leave}. */
    void ended(AgentStream stream, SidecarException error);
  }

  private final Events events;
  private ClientCall<AttachRequest, AttachResponse> call;
  private List<String> acknowledged = new ArrayList<>();
  private int credit;
  private boolean leaving;
  private boolean left;

  AgentStream(Events events) {
    this.events = events;
  }

  void start(Channel channel, Metadata metadata, AttachRequest register) {
    synchronized (this) {
      call = channel.newCall(AgentServiceGrpc.getAttachMethod(), CallOptions.DEFAULT);
    }
    call.start(this, metadata);
    call.request(READ_AHEAD);
    call.sendMessage(register);
  }

  /** Say "mine" of that event. */
  synchronized void acknowledge(String deliveryId) {
    acknowledged.add(deliveryId);
    say();
  }

  /** Let so many more come. */
  synchronized void credit(int amount) {
    credit += amount;
    say();
  }

  /** Say what is still to be said, then half-close; the sidecar then ends the call. Idempotent. */
  synchronized void leave() {
    leaving = true;
    say();
  }

  synchronized void cancel() {
    leaving = true;
    call.cancel("the agent was stopped", null);
  }

  /** Write what has gathered. A write to a call that has ended does nothing: onClose says why. */
  private void say() {
    if (left || !call.isReady()) {
      return;
    }
    try {
      sayAll();
    } catch (IllegalStateException over) {
      left = true;
    }
  }

  private void sayAll() {
    for (int at = 0; at < acknowledged.size(); at += MAX_ACKNOWLEDGED) {
      int end = Math.min(at + MAX_ACKNOWLEDGED, acknowledged.size());
      call.sendMessage(
          AttachRequest.newBuilder()
              .setAcknowledge(
                  AttachRequest.Acknowledge.newBuilder()
                      .addAllDeliveryIds(acknowledged.subList(at, end)))
              .build());
    }
    acknowledged = new ArrayList<>();
    if (credit > 0) {
      call.sendMessage(
          AttachRequest.newBuilder()
              .setCredit(AttachRequest.Credit.newBuilder().setCredits(credit))
              .build());
      credit = 0;
    }
    if (leaving) {
      left = true;
      call.halfClose();
    }
  }

  @Override
  public synchronized void onReady() {
    say();
  }

  @Override
  public void onMessage(AttachResponse response) {
    call.request(1);
    switch (response.getFrameCase()) {
      case REGISTERED -> events.registered(this);
      case EVENT -> events.event(this, response.getEvent());
      case EVENTS -> response.getEvents().getItemsList().forEach(event -> events.event(this, event));
      default -> {} // a kind that came after this version
    }
  }

  @Override
  public void onClose(Status status, Metadata trailers) {
    events.ended(this, isLeaving() ? null : errorOf(status, trailers));
  }

  private synchronized boolean isLeaving() {
    return leaving;
  }

  private static SidecarException errorOf(Status status, Metadata trailers) {
    return status.isOk()
        ? new TransportException(Status.Code.UNAVAILABLE, "the stream ended")
        : SidecarExceptions.from(status, trailers);
  }
}
