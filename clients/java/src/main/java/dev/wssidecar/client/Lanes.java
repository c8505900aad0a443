package dev.wssidecar.client;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The lanes of one Deliver stream: those open, least recently used first, and those that still have answers to get. A lane
 * is opened by one token and carries only what was sent by that token. Renewing the token of an open lane would save a
 * number; but messages that follow a refused renewal would go out by the token before, which is not theirs.
 */
final class Lanes {
  private final int maxLanes;
  private final Map<Recipient, Lane> open = new LinkedHashMap<>(16, 0.75f, true);
  private final Map<Integer, Lane> byNumber = new HashMap<>();
  private int nextNumber;

  Lanes(int maxLanes) {
    this.maxLanes = maxLanes;
  }

  /** The lane of that number, open or with answers to get. */
  Lane get(int number) {
    return byNumber.get(number);
  }

  /** The open lane of that recipient, used now. */
  Lane find(Recipient to) {
    return open.get(to);
  }

  /** No further lane may be opened before one is closed. */
  boolean full() {
    return open.size() >= maxLanes;
  }

  /** A new lane; numbers are not used twice on a stream. */
  Lane add(Recipient to) {
    Lane lane = new Lane(nextNumber++, to);
    open.put(to, lane);
    byNumber.put(lane.number, lane);
    return lane;
  }

  /** Close the idle lane that was not used for longest; null when all are busy. */
  Lane closeLeastRecent() {
    for (Lane lane : open.values()) {
      if (lane.idle()) {
        shut(lane);
        return lane;
      }
    }
    return null;
  }

  /** The lane is not open any more; its answers still come. */
  void shut(Lane lane) {
    open.remove(lane.to, lane);
    forgetIfOver(lane);
  }

  /** A lane that is not open and has nothing to get is over. */
  void forgetIfOver(Lane lane) {
    if (lane.idle() && open.get(lane.to) != lane) {
      byNumber.remove(lane.number);
    }
  }

  /** All that was written and has no answer, or no final one, in their first order. */
  List<Entry> unfinished() {
    List<Entry> entries = new ArrayList<>();
    byNumber.values().forEach(lane -> lane.unfinished(entries));
    entries.sort(Comparator.comparingLong(entry -> entry.order));
    return entries;
  }
}
