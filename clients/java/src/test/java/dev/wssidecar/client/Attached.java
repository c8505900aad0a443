package dev.wssidecar.client;

import com.google.protobuf.ByteString;
import dev.wssidecar.client.ScriptedSidecar.Stream;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import sidecar.api.v1.AttachRequest;
import sidecar.api.v1.AttachResponse;
import sidecar.api.v1.ContentType;

/** The other end of one Attach call. */
final class Attached {
  final Stream<AttachRequest, AttachResponse> stream;
  final AttachRequest.Register registration;
  private final BlockingQueue<String> acknowledged = new LinkedBlockingQueue<>();
  private final BlockingQueue<Integer> credits = new LinkedBlockingQueue<>();

  Attached(Stream<AttachRequest, AttachResponse> stream) throws InterruptedException {
    this.stream = stream;
    this.registration = stream.next().getRegister();
  }

  void register() {
    stream.say(
        AttachResponse.newBuilder()
            .setRegistered(AttachResponse.Registered.getDefaultInstance())
            .build());
  }

  void say(AttachResponse.Event.Builder event) {
    stream.say(AttachResponse.newBuilder().setEvent(event).build());
  }

  void message(String deliveryId, String isolationKey, String id, String text) {
    say(event(deliveryId, isolationKey).setMessage(inbound(id, text)));
  }

  void cancel(String isolationKey, String messageId) {
    say(
        event("", isolationKey)
            .setCancelled(AttachResponse.Cancelled.newBuilder().setMessageId(messageId)));
  }

  String nextAcknowledged() throws InterruptedException {
    while (acknowledged.isEmpty()) {
      read();
    }
    return acknowledged.take();
  }

  int nextCredit() throws InterruptedException {
    while (credits.isEmpty()) {
      read();
    }
    return credits.take();
  }

  /** What has been and was not asked for, without waiting for more. */
  List<String> acknowledgedByNow() throws InterruptedException {
    while (!stream.frames.isEmpty()) {
      read();
    }
    List<String> ids = new ArrayList<>();
    acknowledged.drainTo(ids);
    return ids;
  }

  private void read() throws InterruptedException {
    AttachRequest frame = stream.next();
    if (frame.hasCredit()) {
      credits.add(frame.getCredit().getCredits());
    }
    acknowledged.addAll(frame.getAcknowledge().getDeliveryIdsList());
  }

  static AttachResponse.Event.Builder event(String deliveryId, String isolationKey) {
    return AttachResponse.Event.newBuilder()
        .setDeliveryId(deliveryId)
        .setIsolationKey(isolationKey)
        .setContextToken("token of " + isolationKey)
        .setContext(sidecar.api.v1.UserContext.newBuilder().setUserId("alice"));
  }

  static AttachResponse.Inbound.Builder inbound(String id, String text) {
    return AttachResponse.Inbound.newBuilder()
        .setMessageId(id)
        .setEventType("ask")
        .setContentType(ContentType.CONTENT_TYPE_TEXT)
        .setPayload(ByteString.copyFromUtf8(text));
  }
}
