package dev.wssidecar.client;

import dev.wssidecar.client.ScriptedSidecar.Stream;
import sidecar.api.v1.DeliverRequest;
import sidecar.api.v1.DeliverResponse;
import sidecar.api.v1.DeliveryState;
import sidecar.api.v1.StreamState;

/** The other end of the agent's Deliver stream, of one lane. */
final class Chunks {
  final Stream<DeliverRequest, DeliverResponse> stream;
  private long taken;

  Chunks(Stream<DeliverRequest, DeliverResponse> stream) {
    this.stream = stream;
  }

  String next() throws InterruptedException {
    DeliverRequest frame = stream.next();
    while (!frame.hasMessages()) {
      frame = stream.next();
    }
    taken++;
    sidecar.api.v1.Message message = frame.getMessages().getItems(0).getMessage();
    StreamState state = message.getStream().getState();
    return String.join(
        " ",
        "" + message.getStream().getIndex(),
        state.name().substring("STREAM_STATE_".length()),
        message.getPayload().toStringUtf8(),
        message.getEventType(),
        message.getReplyTo());
  }

  void accept() {
    accept(taken - 1);
  }

  void accept(long number) {
    answer(
        DeliverResponse.LaneReceipt.newBuilder()
            .setNumber(number)
            .setReceipt(
                ScriptedSidecar.receipt(
                    "m", number + 1, DeliveryState.DELIVERY_STATE_WRITTEN)));
  }

  void refuse(com.google.rpc.Status error) {
    answer(DeliverResponse.LaneReceipt.newBuilder().setNumber(taken - 1).setError(error));
  }

  private void answer(DeliverResponse.LaneReceipt.Builder item) {
    stream.say(
        DeliverResponse.newBuilder()
            .setReceipts(DeliverResponse.Receipts.newBuilder().addItems(item))
            .build());
  }
}
