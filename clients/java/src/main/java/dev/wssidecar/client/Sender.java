package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.SidecarExceptions;
import dev.wssidecar.client.errors.TransportException;
import dev.wssidecar.client.errors.UnavailableException;
import io.grpc.Status;
import java.time.Duration;
import java.util.Collection;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import sidecar.api.v1.DeliverRequest;
import sidecar.api.v1.DeliverResponse;

/**
 * Sends many messages fast: many sends at once become few frames of one Deliver stream. Made by {@link
 * SidecarClient#sender()}; for any number of threads.
 *
 * <p>An idle sender writes at once; while a write is under way the next messages gather. Sends are accepted in the order in
 * which they were begun, context by context. A stream that breaks is opened again, and what had no answer is sent again with
 * the same message_id, in order, until its deadline. A message that the sidecar refuses is not sent again: it would come
 * after later ones.
 */
public final class Sender implements AutoCloseable {
  static final Duration CLOSE_TIMEOUT = Duration.ofSeconds(5);

  /** A stream on which all is answered may take so long to end in order: nothing is lost where it is cut off. */
  private static final long HALF_CLOSE_NANOS = TimeUnit.MILLISECONDS.toNanos(200);

  /** This thread tells callers their outcomes: it must not wait for room that it alone makes. */
  private static final ThreadLocal<Boolean> TELLING = ThreadLocal.withInitial(() -> false);

  private final Link link;
  private final SenderLimits limits;
  private final Duration timeout;
  private final boolean reportAcknowledged;
  private final Consumer<StreamCancellation> onStreamCancelled;
  private final BackOff backOff;

  /** Guards all below. */
  private final ReentrantLock lock = new ReentrantLock();

  private final Condition changed = lock.newCondition();
  private final SenderCore core;
  private DeliverStream stream;
  private boolean writing;
  private boolean pausing;
  private boolean closing;
  private int waitingForRoom;
  private long lookAt = Long.MAX_VALUE;
  private Future<?> look;

  Sender(
      Link link,
      SenderLimits limits,
      Duration timeout,
      boolean reportAcknowledged,
      Consumer<StreamCancellation> onStreamCancelled) {
    this.link = link;
    this.limits = limits;
    this.timeout = timeout;
    this.reportAcknowledged = reportAcknowledged;
    this.onStreamCancelled = onStreamCancelled;
    this.backOff = new BackOff(BackOff.BASE, BackOff.CAP, link.settings().uniform());
    this.core = new SenderCore(limits, reportAcknowledged, this::abandon);
  }

  /**
   * Send one message and wait until it is accepted.
   *
   * @param to where it goes
   * @param message what is said
   * @return the receipt
   * @throws SidecarException the sidecar's refusal, or TransportException when the deadline passed
   */
  public Receipt send(Recipient to, Message message) {
    return send(to, message, SendOptions.NONE);
  }

  /**
   * Send one message and wait until it is accepted, or acknowledged where the options say so.
   *
   * @param to where it goes
   * @param message what is said
   * @param options how long it may take
   * @return the receipt
   * @throws SidecarException the sidecar's refusal, or TransportException when the deadline passed
   */
  public Receipt send(Recipient to, Message message, SendOptions options) {
    return Blocking.get(sendAsync(to, message, options));
  }

  /**
   * Begin to send one message; see the other.
   *
   * @param to where it goes
   * @param message what is said
   * @return the receipt, to be
   */
  public CompletableFuture<Receipt> sendAsync(Recipient to, Message message) {
    return sendAsync(to, message, SendOptions.NONE);
  }

  /**
   * Begin to send one message. Its place in the order is decided here. Where {@code maxInFlight} messages are on their way,
   * this waits for room first, until the deadline; interrupted, the future says so and the flag is kept. It never waits in a
   * callback of another send.
   *
   * <p>Cancelled, what was not written is not sent; what was may have been accepted. With {@code waitForAck} (needs a sender
   * that reports acknowledgements) the future is done once the client has acknowledged the message, or it was dropped, or
   * that long after it was accepted; the receipt's state says how far it came.
   *
   * @param to where it goes
   * @param message what is said
   * @param options how long it may take
   * @return the receipt, to be; it fails with a {@link SidecarException}
   */
  public CompletableFuture<Receipt> sendAsync(Recipient to, Message message, SendOptions options) {
    if (options.waitForAck() != null && !reportAcknowledged) {
      throw new IllegalArgumentException("waitForAck needs a sender with reportAcknowledged");
    }
    Duration within = options.timeout() == null ? timeout : options.timeout();
    long now = System.nanoTime();
    long deadline = now + within.toNanos();
    long waitForAck = options.waitForAck() == null ? -1 : options.waitForAck().toNanos();
    sidecar.api.v1.Message proto = message.toProto();
    Entry entry;
    List<DeliverRequest> frames;
    lock.lock();
    try {
      check(to, proto);
      awaitRoom(deadline);
      entry = core.add(to, proto, deadline, waitForAck);
      lookBy(deadline, now);
      frames = next();
    } catch (SidecarException error) {
      return CompletableFuture.failedFuture(error);
    } finally {
      lock.unlock();
    }
    write(frames);
    return entry;
  }

  private void check(Recipient to, sidecar.api.v1.Message message) {
    to.checked();
    if (message.getSerializedSize() > limits.maxMessageBytes()) {
      throw SidecarExceptions.badRequest(
          "message.payload", "at most " + limits.maxMessageBytes() + " bytes");
    }
    checkOpen();
  }

  private void checkOpen() {
    if (closing) {
      throw new IllegalStateException("the sender is closed");
    }
  }

  private void awaitRoom(long deadline) {
    if (!core.full() || TELLING.get()) {
      return;
    }
    waitingForRoom++;
    try {
      while (core.full()) {
        long left = deadline - System.nanoTime();
        if (left <= 0) {
          throw new TransportException(Status.Code.DEADLINE_EXCEEDED, "the deadline passed");
        }
        changed.awaitNanos(left);
        checkOpen();
      }
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      throw new TransportException(
          Status.Code.CANCELLED, "the waiting thread was interrupted before it was sent");
    } finally {
      waitingForRoom--;
    }
  }

  /**
   * Messages that wait to be written or answered.
   *
   * @return how many
   */
  public int inFlight() {
    lock.lock();
    try {
      return core.inFlight();
    } finally {
      lock.unlock();
    }
  }

  // Out: one thread at a time writes; whoever finds one writing leaves its message to it

  /** What to write now, by the thread that asks; nothing while another writes or flow control holds. */
  private List<DeliverRequest> next() {
    if (writing || pausing) {
      return List.of();
    }
    if (stream == null) {
      if (core.hasQueued()) {
        stream = new DeliverStream(this);
        stream.start(link.channel());
      }
      return List.of();
    }
    if (!core.hasQueued()) {
      nothingToWrite();
      return List.of();
    }
    List<DeliverRequest> frames = stream.isReady() ? core.take() : List.of();
    writing = !frames.isEmpty();
    return frames;
  }

  private void nothingToWrite() {
    if (!stream.used() && (closing || stream.isReady())) {
      // What it was opened for is out of time; the sidecar ends a stream that opens no lane.
      stream.cancel();
      stream = null;
      changed.signalAll();
    } else if (closing) {
      stream.leave();
    }
  }

  private void write(List<DeliverRequest> first) {
    List<DeliverRequest> frames = first;
    while (!frames.isEmpty()) {
      DeliverStream to = stream;
      for (DeliverRequest frame : frames) {
        to.write(frame);
      }
      lock.lock();
      try {
        writing = false;
        frames = next();
      } finally {
        lock.unlock();
      }
    }
  }

  /** The stream takes more. */
  void onReady() {
    List<DeliverRequest> frames;
    lock.lock();
    try {
      frames = next();
    } finally {
      lock.unlock();
    }
    write(frames);
  }

  // In

  void onFrame(DeliverResponse response) {
    List<DeliverRequest> frames;
    List<Entry> told;
    List<StreamCancellation> cancellations;
    lock.lock();
    try {
      core.received(response, System.nanoTime());
      backOff.reset();
      frames = next(); // a lane may have become free
      told = core.takeTold();
      cancellations = core.takeCancellations();
      roomMade();
    } finally {
      lock.unlock();
    }
    write(frames);
    tell(told);
    cancellations.forEach(onStreamCancelled);
  }

  void onEnd(DeliverStream ended, SidecarException error) {
    List<DeliverRequest> frames = List.of();
    List<Entry> told;
    lock.lock();
    try {
      if (stream != ended) {
        return;
      }
      stream = null;
      core.streamEnded(error, isPassing(error));
      if (core.hasQueued()) {
        pause(backOff.nextNanos(error.retryAfter().orElse(Duration.ZERO)));
      }
      told = core.takeTold();
      changed.signalAll();
    } finally {
      lock.unlock();
    }
    write(frames);
    tell(told);
  }

  private void pause(long nanos) {
    pausing = true;
    later(this::goOn, nanos);
  }

  private void goOn() {
    lock.lock();
    try {
      pausing = false;
      next(); // opens a stream; there is none to write to yet
    } finally {
      lock.unlock();
    }
  }

  /** Something may have left. */
  private void roomMade() {
    if (waitingForRoom > 0 && !core.full() || closing && answered()) {
      changed.signalAll();
    }
  }

  /** Complete futures, without the lock: whatever hangs on them runs here. */
  private static void tell(List<Entry> told) {
    if (told.isEmpty()) {
      return;
    }
    boolean nested = TELLING.get();
    TELLING.set(true);
    try {
      told.forEach(Entry::tell);
    } finally {
      TELLING.set(nested);
    }
  }

  private void abandon(Entry entry) {
    lock.lock();
    try {
      core.abandon(entry);
      core.takeTold(); // its own: it is cancelled already
      roomMade();
    } finally {
      lock.unlock();
    }
  }

  // Deadlines: one look for all, when the first of them passes

  private void lookBy(long deadline, long now) {
    if (lookAt != Long.MAX_VALUE && lookAt - deadline <= 0) {
      return;
    }
    lookAt = deadline;
    if (look != null) {
      look.cancel(false);
    }
    look = later(this::expire, deadline - now);
  }

  private void expire() {
    List<Entry> told;
    lock.lock();
    try {
      long now = System.nanoTime();
      lookAt = Long.MAX_VALUE;
      long next = core.expire(now);
      if (next != Long.MAX_VALUE) {
        lookBy(now + next, now);
      }
      told = core.takeTold();
      roomMade();
    } finally {
      lock.unlock();
    }
    tell(told);
  }

  private Future<?> later(Runnable work, long nanos) {
    try {
      return link.timer().schedule(work, nanos, TimeUnit.NANOSECONDS);
    } catch (RejectedExecutionException closed) {
      return null; // the client is closed, and this sender before it
    }
  }

  // The end

  /** As {@link #close(Duration)}, with 5 s. */
  @Override
  public void close() {
    close(CLOSE_TIMEOUT);
  }

  /**
   * Take no more, write what is queued, half-close, wait for the receipts, at most that long: at once where nothing is
   * queued or unanswered, also while the sidecar is away. Idempotent. What has no answer by then fails with
   * TransportException, CANCELLED.
   *
   * @param timeout how long it may take
   */
  public void close(Duration timeout) {
    Objects.requireNonNull(timeout, "timeout");
    close(List.of(this), timeout);
  }

  /** Close them side by side, so that they take that long together at most. */
  static void close(Collection<Sender> senders, Duration timeout) {
    long began = System.nanoTime();
    long most = timeout.toNanos();
    senders.forEach(Sender::finish);
    boolean interrupted = false;
    try {
      for (Sender sender : senders) {
        sender.await(sender::answered, most - (System.nanoTime() - began));
      }
      senders.forEach(Sender::finish); // what expired meanwhile is not written any more
      long enough = Math.min(most, System.nanoTime() - began + HALF_CLOSE_NANOS);
      for (Sender sender : senders) {
        sender.await(sender::streamOver, enough - (System.nanoTime() - began));
      }
    } catch (InterruptedException stopped) {
      interrupted = true;
    }
    for (Sender sender : senders) {
      sender.giveUp();
      sender.link.leave(sender);
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  /** Take no more, write what can be written, and half-close once there is nothing more to write. */
  private void finish() {
    List<DeliverRequest> frames;
    lock.lock();
    try {
      closing = true;
      changed.signalAll(); // who waits for room waits in vain
      frames = next();
    } finally {
      lock.unlock();
    }
    write(frames);
  }

  private boolean answered() {
    return core.inFlight() == 0;
  }

  private boolean streamOver() {
    return stream == null;
  }

  private void await(BooleanSupplier so, long nanos) throws InterruptedException {
    lock.lockInterruptibly();
    try {
      long left = nanos;
      while (!so.getAsBoolean() && left > 0) {
        left = changed.awaitNanos(left);
      }
    } finally {
      lock.unlock();
    }
  }

  private void giveUp() {
    List<Entry> told;
    lock.lock();
    try {
      if (stream != null) {
        stream.cancel();
        stream = null;
      }
      if (look != null) {
        look.cancel(false);
      }
      core.failAll(new TransportException(Status.Code.CANCELLED, "the sender was closed"));
      told = core.takeTold();
    } finally {
      lock.unlock();
    }
    tell(told);
  }

  /** Whether a further stream may go better, so that nobody needs to be told of this one's end. */
  static boolean isPassing(SidecarException error) {
    if (error instanceof TransportException) {
      return switch (error.code()) {
        case UNAVAILABLE, CANCELLED, UNKNOWN, INTERNAL -> true;
        default -> false;
      };
    }
    return error.retryAfter().isPresent() || error instanceof UnavailableException;
  }

  @Override
  public String toString() {
    return "Sender[inFlight=" + inFlight() + (closing ? ", closing]" : ", open]");
  }
}
