package dev.wssidecar.client;

import dev.wssidecar.client.errors.ManagerGoneException;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executor;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Consumer;

/**
 * Who handles what, when: the events of one context one after the other, different contexts side by side. What waits for its
 * context holds no place that another context could have: a user who asks much holds up nobody else. It stays the sidecar's
 * until it is begun, or has waited for long: another worker has it when this one stops or is lost, and the sidecar's own
 * bound tells a client that asks too much (AGENT_BUSY).
 */
final class Dispatcher {
  private static final Duration CANCEL_TIMEOUT = Duration.ofSeconds(10);
  private static final Logger LOG = System.getLogger("dev.wssidecar.client");

  private final AgentHandler handler;
  private final Executor executor;
  private final Runnable onRoom;
  private final Consumer<String> acknowledge;
  private final Patience patience;
  private final ReentrantLock lock = new ReentrantLock();
  private final Condition changed = lock.newCondition();
  private final Map<String, Handling> running = new HashMap<>();
  private final Map<String, Deque<Handling>> waiting = new HashMap<>();
  private boolean leaving;
  private boolean stopping;
  private boolean givenUp;

  /** Does one event. */
  @FunctionalInterface
  interface AgentHandler {
    void handle(AgentEvent event) throws Exception;
  }

  /** How long an event may wait for its turn without being acknowledged. */
  @FunctionalInterface
  interface Patience {
    /** Calls that, from another thread, when it is over; not where it is cancelled before. */
    Future<?> whenOver(Runnable call);
  }

  /**
   * {@code onRoom} is called for each event received, when another may be in its place; {@code acknowledge} with its
   * delivery id when its handler begins, or when the patience with its waiting is over.
   */
  Dispatcher(
      AgentHandler handler,
      Executor executor,
      Runnable onRoom,
      Consumer<String> acknowledge,
      Patience patience) {
    this.handler = handler;
    this.executor = executor;
    this.onRoom = onRoom;
    this.acknowledge = acknowledge;
    this.patience = patience;
  }

  /** How many contexts have a handler running. */
  int busy() {
    lock.lock();
    try {
      return running.size();
    } finally {
      lock.unlock();
    }
  }

  /** Handle it when those of its context before it have been. */
  void receive(AgentEvent event, String deliveryId, Answering answering) {
    Handling handling = new Handling(event, deliveryId, answering);
    Handling before;
    lock.lock();
    try {
      if (leaving) {
        return; // not acknowledged, it goes to another worker
      }
      before = running.putIfAbsent(handling.key(), handling);
      if (before == null) {
        acknowledge(handling);
      } else {
        handling.waitingLong = patience.whenOver(() -> hasWaitedLong(handling));
        waiting.computeIfAbsent(handling.key(), key -> new ArrayDeque<>()).add(handling);
      }
    } finally {
      lock.unlock();
    }
    if (before == null) {
      start(handling);
      return;
    }
    if (event instanceof AgentEvent.Closed && !before.answering.open().isEmpty()) {
      // An answer that is being streamed has nobody to read it any more. Other work goes on.
      before.answering.cancel();
    }
    onRoom.run();
  }

  /** It is this process's, said once. Under the lock, so that it is said before the agent leaves, or not at all. */
  private void acknowledge(Handling handling) {
    if (handling.own()) {
      acknowledge.accept(handling.deliveryId);
    }
  }

  /** The sidecar would take the context from this worker, which it thinks is stuck. */
  private void hasWaitedLong(Handling handling) {
    lock.lock();
    try {
      acknowledge(handling);
    } finally {
      lock.unlock();
    }
  }

  /**
   * An event that came again is acknowledged: where it waits, it is this process's now. Not where the agent is leaving: it
   * may be among what was given back.
   */
  void own(String isolationKey, String deliveryId) {
    lock.lock();
    try {
      if (leaving) {
        return;
      }
      for (Handling each : waiting.getOrDefault(isolationKey, new ArrayDeque<>())) {
        if (each.deliveryId.equals(deliveryId)) {
          each.own();
        }
      }
      acknowledge.accept(deliveryId);
    } finally {
      lock.unlock();
    }
  }

  /** The client wants no more of a stream, or of the answer to a message. */
  void cancel(String isolationKey, String streamId, String messageId) {
    List<Handling> ofContext = new ArrayList<>();
    lock.lock();
    try {
      if (running.containsKey(isolationKey)) {
        ofContext.add(running.get(isolationKey));
      }
      ofContext.addAll(waiting.getOrDefault(isolationKey, new ArrayDeque<>()));
    } finally {
      lock.unlock();
    }
    for (Handling each : ofContext) {
      if (each.isAnswerTo(messageId) || each.answering.answers(streamId)) {
        each.answering.cancel();
      }
    }
  }

  // Running

  /** Begin one; its context has none running. */
  private void start(Handling handling) {
    try {
      executor.execute(() -> run(handling));
    } catch (RejectedExecutionException shutDown) {
      LOG.log(Level.ERROR, "the agent's executor takes no more handlers");
      done(handling);
    }
  }

  private void run(Handling handling) {
    try {
      if (handling.answering.begin()) {
        handle(handling);
      }
    } finally {
      done(handling);
    }
  }

  private void handle(Handling handling) {
    Answering answering = handling.answering;
    try {
      handler.handle(handling.event);
      answering.open().forEach(ReplyStream::handlerReturned);
    } catch (Throwable error) { // an Error too: the user is to see an end, and the context to go on
      report(handling, error);
      answering.end(); // what interrupted the handler does not interrupt its last chunk
      answering.open().forEach(ReplyStream::handlerThrew);
    } finally {
      answering.end();
    }
  }

  private static void report(Handling handling, Throwable error) {
    String kind = handling.event.getClass().getSimpleName();
    if (error instanceof ManagerGoneException || handling.answering.wasTold()) {
      LOG.log(Level.DEBUG, "a handler of {0} ended early", kind);
    } else {
      LOG.log(Level.ERROR, "a handler failed on " + kind, error);
    }
  }

  /** The next of its context takes its place, else another context may. */
  private void done(Handling handling) {
    Handling following;
    lock.lock();
    try {
      Deque<Handling> line = waiting.get(handling.key());
      following = line == null || stopping ? null : line.poll();
      if (line != null && line.isEmpty()) {
        waiting.remove(handling.key());
      }
      if (following == null) {
        running.remove(handling.key());
        changed.signalAll();
      } else {
        acknowledge(following);
        running.put(handling.key(), following);
      }
    } finally {
      lock.unlock();
    }
    if (following == null) {
      onRoom.run();
    } else {
      start(following);
    }
  }

  // The end

  /** What waits and is not acknowledged comes again, here or elsewhere: it is not begun any more. Returns it. */
  List<Handling> giveBack() {
    List<Handling> given = new ArrayList<>();
    lock.lock();
    try {
      for (Deque<Handling> line : waiting.values()) {
        line.stream().filter(Handling::giveBack).forEach(given::add);
        line.removeIf(handling -> handling.givenBack);
      }
    } finally {
      lock.unlock();
    }
    return given;
  }

  /** Take no more, and give back what is not acknowledged. */
  void leave() {
    lock.lock();
    try {
      leaving = true;
      giveBack();
    } finally {
      lock.unlock();
    }
  }

  /** Let what is left be handled, at most that long; then interrupt it. After {@code leave}. */
  void finish(Duration grace) {
    boolean interrupted = false;
    lock.lock();
    try {
      interrupted = !awaitIdle(grace, true);
      stopping = true;
      waiting.clear();
      if (!running.isEmpty()) {
        double graceSeconds = grace.toMillis() / 1e3;
        LOG.log(
            Level.WARNING, "{0} handlers did not end within {1} s", running.size(), graceSeconds);
        running.values().forEach(handling -> handling.answering.interrupt());
        interrupted |= !awaitIdle(CANCEL_TIMEOUT, false);
      }
      if (!running.isEmpty()) {
        LOG.log(Level.ERROR, "{0} handlers do not end though they were interrupted", running.size());
      }
    } finally {
      lock.unlock();
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  /** False: the waiting thread was interrupted. */
  private boolean awaitIdle(Duration most, boolean untilGivenUp) {
    try {
      long left = most.toNanos();
      while (!running.isEmpty() && left > 0 && !(untilGivenUp && givenUp)) {
        left = changed.awaitNanos(left);
      }
      return true;
    } catch (InterruptedException interrupted) {
      return false;
    }
  }

  /** End the grace that {@code finish} gives, if it does. */
  void giveUp() {
    lock.lock();
    try {
      givenUp = true;
      changed.signalAll();
    } finally {
      lock.unlock();
    }
  }

  /** One event, from its receipt to the end of its handler. What changes is guarded by the dispatcher's lock. */
  static final class Handling {
    private final AgentEvent event;
    private final String deliveryId;
    private final Answering answering;
    private Future<?> waitingLong;
    private boolean acknowledged;
    private boolean givenBack;

    private Handling(AgentEvent event, String deliveryId, Answering answering) {
      this.event = event;
      this.deliveryId = deliveryId;
      this.answering = answering;
    }

    AgentEvent event() {
      return event;
    }

    String deliveryId() {
      return deliveryId;
    }

    private String key() {
      return event.context().isolationKey();
    }

    private boolean isAnswerTo(String messageId) {
      return !messageId.isEmpty()
          && event instanceof InboundMessage message
          && message.id().equals(messageId);
    }

    /** It is acknowledged from now on; false: it was, or is not this process's any more, though its timer says so late. */
    private boolean own() {
      boolean now = !acknowledged && !givenBack;
      acknowledged |= now;
      stopWaiting();
      return now;
    }

    /** Whether it is not this process's any more. */
    private boolean giveBack() {
      givenBack = !acknowledged;
      if (givenBack) {
        stopWaiting();
      }
      return givenBack;
    }

    private void stopWaiting() {
      if (waitingLong != null) {
        waitingLong.cancel(false);
        waitingLong = null;
      }
    }
  }
}
