package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarException;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;

/** One numbered lane of the stream: what was written there and has no answer, in order. */
final class Lane {
  private static final int MAX_REMEMBERED_GAPS = 64;

  final int number;
  final Recipient to;

  /** Why it is over; null while it is not. */
  SidecarException error;

  private final ArrayDeque<Entry> pending = new ArrayDeque<>();
  private long answered;
  private List<Entry> waiting = new ArrayList<>();
  private long position;
  private final Deque<Gap> gaps = new ArrayDeque<>();

  private record Gap(long first, long last) {}

  Lane(int number, Recipient to) {
    this.number = number;
    this.to = to;
  }

  /** Nothing waits for it. */
  boolean idle() {
    return pending.isEmpty() && waiting.isEmpty();
  }

  /** The next message of the lane. */
  void put(Entry entry) {
    pending.add(entry);
    entry.written = true;
  }

  /** The message of that number, which is the oldest without an answer; null for any other. */
  Entry take(long place) {
    if (place != answered || pending.isEmpty()) {
      return null;
    }
    answered++;
    return pending.poll();
  }

  /** Accepted, and waits for the client's acknowledgement. */
  void await(Entry entry) {
    waiting.add(entry);
  }

  boolean stopWaiting(Entry entry) {
    return waiting.remove(entry);
  }

  /** Nothing more will be heard of these. */
  List<Entry> takeWaiting() {
    List<Entry> all = waiting;
    waiting = new ArrayList<>();
    return all;
  }

  void acknowledged(long sequence) {
    position = Math.max(position, sequence);
  }

  void dropped(long first, long last) {
    if (gaps.size() == MAX_REMEMBERED_GAPS) {
      gaps.poll();
    }
    gaps.add(new Gap(first, last));
  }

  /** The entries whose fate is known by now, each with its receipt in that state. */
  List<Entry> takeDecided() {
    if (waiting.isEmpty()) {
      return List.of();
    }
    List<Entry> decided = new ArrayList<>();
    for (Entry entry : takeWaiting()) {
      DeliveryState fate = fateOf(entry.receipt.sequence());
      if (fate == null) {
        waiting.add(entry);
      } else {
        entry.receipt = entry.receipt.withState(fate);
        decided.add(entry);
      }
    }
    return decided;
  }

  private DeliveryState fateOf(long sequence) {
    if (gaps.stream().anyMatch(gap -> gap.first <= sequence && sequence <= gap.last)) {
      return DeliveryState.DROPPED;
    }
    return sequence <= position ? DeliveryState.ACKNOWLEDGED : null;
  }

  /** All that was written and has no answer, or no final one. */
  void unfinished(List<Entry> into) {
    into.addAll(pending);
    into.addAll(waiting);
  }
}
