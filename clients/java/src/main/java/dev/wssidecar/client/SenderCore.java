package dev.wssidecar.client;

import dev.wssidecar.client.errors.LaneNotOpenException;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.SidecarExceptions;
import dev.wssidecar.client.errors.TransportException;
import io.grpc.Status;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;
import sidecar.api.v1.DeliverRequest;
import sidecar.api.v1.DeliverResponse;

/**
 * What a sender decides: what goes into the next frame, whose an answer is, what is sent again, what is out of time. No
 * I/O, no clock, no lock: the sender holds its own. What is to be told to callers gathers, and is told outside of it.
 */
final class SenderCore {
  private static final TransportException OUT_OF_TIME =
      new TransportException(Status.Code.DEADLINE_EXCEEDED, "the deadline passed");

  private final SenderLimits limits;
  private final boolean reportAcknowledged;
  private final Consumer<Entry> onCancel;
  private final ArrayDeque<Entry> queue = new ArrayDeque<>();
  private Lanes lanes;
  private long nextOrder;
  private int inFlight;
  private List<Entry> told = new ArrayList<>();
  private List<StreamCancellation> cancellations = new ArrayList<>();

  SenderCore(SenderLimits limits, boolean reportAcknowledged, Consumer<Entry> onCancel) {
    this.limits = limits;
    this.reportAcknowledged = reportAcknowledged;
    this.onCancel = onCancel;
    this.lanes = new Lanes(limits.maxLanes());
  }

  /** Messages added that have not left. */
  int inFlight() {
    return inFlight;
  }

  boolean full() {
    return inFlight >= limits.maxInFlight();
  }

  /** Whether something waits to be written. */
  boolean hasQueued() {
    return !queue.isEmpty();
  }

  /** What callers are to be told now; the caller of this tells them, without the lock. */
  List<Entry> takeTold() {
    if (told.isEmpty()) {
      return List.of();
    }
    List<Entry> taken = told;
    told = new ArrayList<>();
    return taken;
  }

  List<StreamCancellation> takeCancellations() {
    if (cancellations.isEmpty()) {
      return List.of();
    }
    List<StreamCancellation> taken = cancellations;
    cancellations = new ArrayList<>();
    return taken;
  }

  /** Queue one message, behind all that were added before. */
  Entry add(Recipient to, sidecar.api.v1.Message message, long deadline, long waitForAckNanos) {
    Entry entry = new Entry(nextOrder++, to, message, deadline, waitForAckNanos, onCancel);
    inFlight++;
    queue.add(entry);
    return entry;
  }

  /** Its caller is gone: unwritten it is dropped; written, its answer is taken and forgotten. Idempotent. */
  void abandon(Entry entry) {
    if (entry.abandoned || entry.left) {
      return;
    }
    entry.abandoned = true;
    if (!entry.written) {
      queue.remove(entry);
      leave(entry);
    } else if (entry.receipt != null) {
      stopWaiting(entry);
    }
  }

  private void stopWaiting(Entry entry) {
    Lane lane = lanes.find(entry.to);
    if (lane != null && lane.stopWaiting(entry)) {
      leave(entry);
    }
  }

  // Out

  /** The next frames to write, in order; none when there is nothing, or no lane free for what is next. */
  List<DeliverRequest> take() {
    if (queue.isEmpty()) {
      return List.of();
    }
    List<DeliverRequest> frames = new ArrayList<>(2);
    DeliverRequest.Messages.Builder messages = DeliverRequest.Messages.newBuilder();
    int items = 0;
    long size = 0;
    while (items < limits.maxFrameItems()) {
      Entry entry = queue.peek();
      if (entry == null || items > 0 && size + entry.size() > limits.maxFrameBytes()) {
        break;
      }
      Lane lane = lanes.find(entry.to);
      if (lane == null) {
        lane = openLane(entry.to, frames);
      }
      if (lane == null) {
        break;
      }
      queue.poll();
      lane.put(entry);
      size += entry.size();
      items++;
      messages.addItems(
          DeliverRequest.LaneMessage.newBuilder().setLane(lane.number).setMessage(entry.message));
    }
    if (items > 0) {
      frames.add(DeliverRequest.newBuilder().setMessages(messages).build());
    }
    return frames;
  }

  private Lane openLane(Recipient to, List<DeliverRequest> frames) {
    if (lanes.full()) {
      Lane least = lanes.closeLeastRecent();
      if (least == null) {
        return null;
      }
      frames.add(
          DeliverRequest.newBuilder()
              .setCloseLane(DeliverRequest.CloseLane.newBuilder().setLane(least.number))
              .build());
    }
    Lane lane = lanes.add(to);
    frames.add(
        DeliverRequest.newBuilder()
            .setOpenLane(
                DeliverRequest.OpenLane.newBuilder()
                    .setLane(lane.number)
                    .setIsolationKey(to.isolationKey())
                    .setContextToken(to.contextToken())
                    .setExpectedUserId(to.expectedUserId())
                    .setReportAcknowledged(reportAcknowledged))
            .build());
    return lane;
  }

  // In

  /** Take one frame of the sidecar's. Kinds that came after this version are left alone. */
  void received(DeliverResponse response, long now) {
    switch (response.getFrameCase()) {
      case RECEIPTS -> response.getReceipts().getItemsList().forEach(item -> receipt(item, now));
      case LANE_ERROR -> laneError(response.getLaneError());
      case ACKNOWLEDGED -> acknowledged(response.getAcknowledged());
      case DROPPED -> dropped(response.getDropped());
      case STREAM_CANCELLED -> streamCancelled(response.getStreamCancelled());
      default -> {}
    }
  }

  private void receipt(DeliverResponse.LaneReceipt item, long now) {
    Lane lane = lanes.get(item.getLane());
    Entry entry = lane == null ? null : lane.take(item.getNumber());
    if (entry == null) {
      return;
    }
    if (item.hasReceipt()) {
      accepted(lane, entry, Protos.receipt(item.getReceipt()), now);
    } else {
      SidecarException error = SidecarExceptions.from(item.getError());
      boolean laneIsOver = error instanceof LaneNotOpenException && lane.error != null;
      entry.fail(laneIsOver ? lane.error : error);
      leave(entry);
    }
    lanes.forgetIfOver(lane);
  }

  private void accepted(Lane lane, Entry entry, Receipt receipt, long now) {
    // The first receipt is the one that counts, but for its state: one sent again is its own duplicate.
    entry.receipt = entry.receipt == null ? receipt : entry.receipt.withState(receipt.state());
    DeliveryState state = receipt.state();
    boolean decided = state == DeliveryState.ACKNOWLEDGED || state == DeliveryState.DROPPED;
    if (entry.waitForAckNanos < 0 || entry.abandoned || decided || lane.error != null) {
      leave(entry);
      return;
    }
    entry.deadline = now + entry.waitForAckNanos;
    lane.await(entry);
    settle(lane);
  }

  /** The lane is over: what was written is still answered one by one; what was accepted is heard of no more. */
  private void laneError(DeliverResponse.LaneError frame) {
    Lane lane = lanes.get(frame.getLane());
    if (lane == null) {
      return;
    }
    lane.error = SidecarExceptions.from(frame.getError());
    lane.takeWaiting().forEach(this::leave);
    lanes.shut(lane);
  }

  private void acknowledged(DeliverResponse.Acknowledged frame) {
    Lane lane = lanes.get(frame.getLane());
    if (lane != null) {
      lane.acknowledged(frame.getSequence());
      settle(lane);
    }
  }

  private void dropped(DeliverResponse.Dropped frame) {
    Lane lane = lanes.get(frame.getLane());
    if (lane != null) {
      lane.dropped(frame.getFrom(), frame.getTo());
      settle(lane);
    }
  }

  private void streamCancelled(DeliverResponse.StreamCancelled frame) {
    Lane lane = lanes.get(frame.getLane());
    if (lane != null) {
      cancellations.add(
          new StreamCancellation(
              lane.to.isolationKey(), frame.getStreamId(), frame.getReplyTo()));
    }
  }

  private void settle(Lane lane) {
    lane.takeDecided().forEach(this::leave);
    lanes.forgetIfOver(lane);
  }

  // Ends

  /**
   * Give up what is out of time, and say when to look again; Long.MAX_VALUE where nothing is to come. Unwritten it is never
   * sent; accepted, the receipt is what there is; written, its answer is taken and forgotten.
   */
  long expire(long now) {
    long next = Long.MAX_VALUE;
    List<Entry> held = lanes.unfinished();
    held.addAll(queue);
    boolean unwritten = false;
    for (Entry entry : held) {
      if (entry.abandoned) {
        continue;
      }
      if (entry.deadline - now > 0) {
        next = Math.min(next, entry.deadline - now);
        continue;
      }
      entry.abandoned = true;
      if (entry.receipt == null) {
        entry.fail(OUT_OF_TIME);
      }
      if (entry.written) {
        stopWaiting(entry);
      } else {
        leave(entry);
        unwritten = true;
      }
      if (!entry.left) {
        told.add(entry); // its answer is still to come, and will be forgotten
      }
    }
    if (unwritten) {
      queue.removeIf(entry -> entry.left);
    }
    return next;
  }

  /**
   * The stream is over, its lanes with it. {@code again}: what has no answer is to be written to the next one, first and in
   * order; with the same message_id it is taken once. Also what waits for an acknowledgement: the answer to its duplicate
   * says how far it came. Else it fails with the error; what was never written is kept.
   */
  void streamEnded(SidecarException error, boolean again) {
    List<Entry> unfinished = lanes.unfinished();
    lanes = new Lanes(limits.maxLanes());
    for (int at = unfinished.size() - 1; at >= 0; at--) {
      Entry entry = unfinished.get(at);
      if (again && !entry.abandoned) {
        entry.written = false;
        entry.unanswered = true;
        queue.addFirst(entry);
      } else {
        giveUp(entry, error);
      }
    }
  }

  /** Give up everything that is held. */
  void failAll(SidecarException error) {
    List<Entry> entries = lanes.unfinished();
    entries.addAll(queue);
    lanes = new Lanes(limits.maxLanes());
    queue.clear();
    entries.forEach(entry -> giveUp(entry, error));
  }

  private void giveUp(Entry entry, SidecarException error) {
    if (entry.receipt == null && entry.error == null) {
      entry.fail(error);
    }
    leave(entry);
  }

  private void leave(Entry entry) {
    entry.left = true;
    inFlight--;
    told.add(entry);
  }
}
