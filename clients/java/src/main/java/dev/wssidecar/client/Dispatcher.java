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
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;

/**
 * Who handles what, when: the events of one context one after the other, different contexts side by side. What waits for its
 * context holds no place that another context could have: a user who asks much holds up nobody else.
 */
final class Dispatcher {
  /**
   * Events of one context that wait and are acknowledged. What comes beyond stays the sidecar's until it is begun, whose own
   * bound then tells that client (AGENT_BUSY), and which hands it to another worker when this one stops.
   */
  static final int MAX_BACKLOG = 32;

  private static final Duration CANCEL_TIMEOUT = Duration.ofSeconds(10);
  private static final Logger LOG = System.getLogger("dev.wssidecar.client");

  private final AgentHandler handler;
  private final Executor executor;
  private final Runnable onRoom;
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

  /** {@code onRoom} is called for each event received, when another may be in its place. */
  Dispatcher(AgentHandler handler, Executor executor, Runnable onRoom) {
    this.handler = handler;
    this.executor = executor;
    this.onRoom = onRoom;
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

  /**
   * Handle it when those of its context before it have been. {@code acknowledge} is called when the event
   * is this process's.
   */
  void receive(AgentEvent event, Answering answering, Runnable acknowledge) {
    Handling handling = new Handling(event, answering, acknowledge);
    Handling before;
    lock.lock();
    try {
      if (leaving) {
        return; // not acknowledged, it goes to another worker
      }
      before = running.putIfAbsent(handling.key(), handling);
      if (before == null) {
        handling.acknowledge();
      } else {
        enqueue(handling);
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

  private void enqueue(Handling handling) {
    Deque<Handling> line = waiting.computeIfAbsent(handling.key(), key -> new ArrayDeque<>());
    line.add(handling);
    if (line.size() <= MAX_BACKLOG) {
      handling.acknowledge();
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
        following.acknowledge();
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

  /**
   * Take no more. What waits and is not acknowledged goes to another worker from now on: it is not begun
   * here any more.
   */
  void giveBack() {
    lock.lock();
    try {
      leaving = true;
      waiting.values().forEach(line -> line.removeIf(handling -> !handling.acknowledged));
    } finally {
      lock.unlock();
    }
  }

  /** Let what is left be handled, at most that long; then interrupt it. */
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

  /** One event, from its receipt to the end of its handler. */
  private static final class Handling {
    private final AgentEvent event;
    private final Answering answering;
    private final Runnable acknowledge;
    private boolean acknowledged;

    private Handling(AgentEvent event, Answering answering, Runnable acknowledge) {
      this.event = event;
      this.answering = answering;
      this.acknowledge = acknowledge;
    }

    private String key() {
      return event.context().isolationKey();
    }

    private boolean isAnswerTo(String messageId) {
      return !messageId.isEmpty()
          && event instanceof InboundMessage message
          && message.id().equals(messageId);
    }

    /** Once; under the lock, so that all that is begun was said before the agent leaves. */
    private void acknowledge() {
      if (!acknowledged) {
        acknowledged = true;
        acknowledge.run();
      }
    }
  }
}
