package dev.wssidecar.client;

import com.google.protobuf.ByteString;
import java.util.concurrent.CompletableFuture;

/** A message of a user's. */
public final class InboundMessage implements AgentEvent {
  private final AgentContext context;
  private final String id;
  private final String event;
  private final ByteString payload;
  private final ContentType contentType;
  private final boolean redelivered;
  private final Answering answering;

  InboundMessage(
      AgentContext context,
      String id,
      String event,
      ByteString payload,
      ContentType contentType,
      boolean redelivered,
      Answering answering) {
    this.context = context;
    this.id = id;
    this.event = event;
    this.payload = payload;
    this.contentType = contentType;
    this.redelivered = redelivered;
    this.answering = answering;
  }

  @Override
  public AgentContext context() {
    return context;
  }

  /**
   * The client's own id of it.
   *
   * @return empty for raw clients
   */
  public String id() {
    return id;
  }

  /**
   * What the client calls it.
   *
   * @return {@code message} where the client said nothing
   */
  public String event() {
    return event;
  }

  /**
   * The content, as bytes.
   *
   * @return a copy
   */
  public byte[] payload() {
    return payload.toByteArray();
  }

  /**
   * The content as text: what a text says, or the JSON text, for the JSON library of your choice.
   *
   * @return the payload, read as UTF-8
   */
  public String text() {
    return payload.toStringUtf8();
  }

  /**
   * How the payload is to be read.
   *
   * @return the content type
   */
  public ContentType contentType() {
    return contentType;
  }

  /**
   * Whether it may have been handled before, by a worker that was lost.
   *
   * @return true where it comes again
   */
  public boolean redelivered() {
    return redelivered;
  }

  /**
   * Done when the client wants no answer any more. The handler's thread is interrupted then; hang on this future what runs
   * elsewhere. What hangs on it runs on the agent's executor.
   *
   * @return the future; it never fails
   */
  public CompletableFuture<Void> cancelled() {
    return answering.cancelledFuture();
  }

  /**
   * Whether the client has said that it wants no answer any more.
   *
   * @return true then
   */
  public boolean isCancelled() {
    return answering.isCancelled();
  }

  /**
   * A response stream, whose chunks carry no event type. See {@link ReplyStream}.
   *
   * @return the stream
   */
  public ReplyStream reply() {
    return reply(ReplyOptions.DEFAULTS);
  }

  /**
   * A response stream. See {@link ReplyStream}.
   *
   * @param eventType of every chunk
   * @return the stream
   */
  public ReplyStream reply(String eventType) {
    return reply(ReplyOptions.DEFAULTS.withEventType(eventType));
  }

  /**
   * A response stream. See {@link ReplyStream}.
   *
   * @param options what else may be said of it
   * @return the stream
   */
  public ReplyStream reply(ReplyOptions options) {
    ReplyStream stream = new ReplyStream(context, answering, id, options);
    answering.add(stream);
    return stream;
  }

  /** Says nothing of the payload. */
  @Override
  public String toString() {
    return "InboundMessage[context=" + context + ", id=" + id + ", event=" + event + "]";
  }
}
