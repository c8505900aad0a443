package dev.wssidecar.client;

import com.google.protobuf.ByteString;
import dev.wssidecar.client.errors.ManagerGoneException;
import dev.wssidecar.client.errors.NoAgentException;
import dev.wssidecar.client.errors.Refusal;
import dev.wssidecar.client.errors.ResourceExhaustedException;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.StreamCancelledException;
import dev.wssidecar.client.errors.TransportException;
import dev.wssidecar.client.errors.UnavailableException;
import io.grpc.Status;
import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.ReentrantLock;

/**
 * One answer in chunks, in order and each once, with an end that the client sees. Made by {@link
 * InboundMessage#reply()}.
 *
 * <p>It ends when its handler returns, and fails when its handler throws, without a word of the exception; {@link
 * #end()} and {@link #fail()} say so before. A chunk whose fate is not known is sent again under its own index before
 * anything else is, whatever broke in between.
 *
 * <p>When the client wants no more, {@code send} throws {@link StreamCancelledException}. In the handler's thread
 * that takes the place of the interrupt: the flag is clear, and the handler may say a last word outside of the
 * stream.
 */
public final class ReplyStream {
  private static final Duration FAIL_TIMEOUT = Duration.ofSeconds(5);

  private final String id;
  private final AgentContext context;
  private final Answering answering;
  private final String replyTo;
  private final ReplyOptions options;
  private final ReentrantLock turn = new ReentrantLock();
  private long nextIndex;
  private Message unsettled;
  private boolean over;

  ReplyStream(AgentContext context, Answering answering, String replyTo, ReplyOptions options) {
    this.id = options.streamId().isEmpty() ? Texts.newId() : options.streamId();
    this.context = context;
    this.answering = answering;
    this.replyTo = replyTo;
    this.options = options;
  }

  /**
   * The stream's id.
   *
   * @return an identifier
   */
  public String id() {
    return id;
  }

  /**
   * Send a chunk of text.
   *
   * @param text any text
   * @return the receipt
   */
  public Receipt sendText(String text) {
    return send(Message.text(text));
  }

  /**
   * Send a chunk of JSON.
   *
   * @param json exactly one JSON value
   * @return the receipt
   */
  public Receipt sendJson(String json) {
    return send(Message.json(json));
  }

  /**
   * Send the next chunk: returns when the sidecar has accepted it. Tried again until the stream's time for a chunk is
   * over, where the sidecar cannot take it now or the client is slow.
   *
   * @param content what is said, and its headers; the rest is the stream's
   * @return the receipt
   */
  public Receipt send(Message content) {
    return put(content, StreamState.OPEN, options.chunkTimeout());
  }

  /**
   * Send the last chunk, which says nothing. The end of the handler does it by itself.
   *
   * @return the receipt
   */
  public Receipt end() {
    return end(nothing());
  }

  /**
   * Send the last chunk.
   *
   * @param content what is said last
   * @return the receipt
   */
  public Receipt end(Message content) {
    return put(content, StreamState.END, options.chunkTimeout());
  }

  /**
   * Send the last chunk of an answer that failed, which says nothing.
   *
   * @return the receipt
   */
  public Receipt fail() {
    return fail(nothing());
  }

  /**
   * Send the last chunk of an answer that failed.
   *
   * @param content what you choose to say of the cause
   * @return the receipt
   */
  public Receipt fail(Message content) {
    return put(content, StreamState.ERROR, options.chunkTimeout());
  }

  private static Message nothing() {
    return Message.of(ByteString.EMPTY.toByteArray(), ContentType.JSON);
  }

  /** Its handler has returned. */
  void handlerReturned() {
    if (!isOver()) {
      try {
        end();
      } finally {
        finish();
      }
    }
  }

  /** Its handler has thrown: what goes wrong here says less than what went wrong there. */
  void handlerThrew() {
    try {
      if (!isOver() && !answering.isCancelled() && !context.ended()) {
        put(nothing(), StreamState.ERROR, FAIL_TIMEOUT);
      }
    } catch (SidecarException alsoFailed) {
      // The sidecar ends a stream that falls silent.
    } finally {
      finish();
    }
  }

  private boolean isOver() {
    turn.lock();
    try {
      return over;
    } finally {
      turn.unlock();
    }
  }

  private void finish() {
    over = true;
    answering.remove(this);
  }

  private Receipt put(Message content, StreamState state, Duration timeout) {
    try {
      turn.lockInterruptibly();
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      throw interrupted();
    }
    try {
      if (over) {
        throw new IllegalStateException("the stream is over");
      }
      if (answering.isCancelled()) {
        throw cancelled();
      }
      if (unsettled != null) {
        settle(unsettled, timeout);
      }
      unsettled =
          content
              .withMessageId(Texts.newId())
              .withEventType(options.eventType())
              .withReplyTo(replyTo)
              .withStream(new StreamPlace(id, nextIndex, state));
      Receipt receipt = settle(unsettled, timeout);
      if (state != StreamState.OPEN) {
        finish();
      }
      return receipt;
    } catch (StreamCancelledException wantsNoMore) {
      finish();
      answering.cancelHere();
      throw wantsNoMore;
    } finally {
      turn.unlock();
    }
  }

  /** Send the chunk until it is taken or refused; else it is kept, and is the first to be sent again. */
  private Receipt settle(Message chunk, Duration timeout) {
    long deadline = System.nanoTime() + timeout.toNanos();
    BackOff backOff =
        new BackOff(BackOff.BASE, BackOff.CAP, () -> ThreadLocalRandom.current().nextDouble());
    while (true) {
      try {
        long left = Math.max(deadline - System.nanoTime(), 1_000_000L);
        Receipt receipt =
            context.send(chunk, SendOptions.NONE.withTimeout(Duration.ofNanos(left)));
        unsettled = null;
        nextIndex++;
        return receipt;
      } catch (SidecarException error) {
        long wait = backOff.nextNanos(error.retryAfter().orElse(Duration.ZERO));
        if (!isPassing(error) || System.nanoTime() + wait - deadline >= 0) {
          throw given(error);
        }
        pause(wait);
      }
    }
  }

  /** What to throw, and whether the chunk is settled by it. */
  private SidecarException given(SidecarException error) {
    if (error.definite() || error instanceof ManagerGoneException) {
      unsettled = null;
    }
    boolean ofCancel = error instanceof TransportException && answering.isCancelled();
    return ofCancel ? cancelled() : error;
  }

  private void pause(long nanos) {
    try {
      TimeUnit.NANOSECONDS.sleep(nanos);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      throw interrupted();
    }
  }

  private SidecarException interrupted() {
    return answering.isCancelled()
        ? cancelled()
        : new TransportException(Status.Code.CANCELLED, "the waiting thread was interrupted");
  }

  private static StreamCancelledException cancelled() {
    return new StreamCancelledException(
        Refusal.of(
            Status.Code.FAILED_PRECONDITION,
            "STREAM_CANCELLED",
            "the client has cancelled the stream"));
  }

  /** Whether the same chunk may be taken later. A full outbox is a client that reads too slowly: the agent waits. */
  private static boolean isPassing(SidecarException error) {
    if (error instanceof ResourceExhaustedException) {
      return error.retryAfter().isPresent();
    }
    return error instanceof UnavailableException && !(error instanceof NoAgentException);
  }

  @Override
  public String toString() {
    return "ReplyStream[id=" + id + ", nextIndex=" + nextIndex + (over ? ", over]" : ", open]");
  }
}
