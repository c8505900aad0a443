package dev.wssidecar.client;

import com.google.protobuf.ByteString;
import java.time.Duration;
import java.util.Map;
import java.util.Objects;

/**
 * One message to one user. Immutable: each {@code with…} gives another.
 *
 * <pre>{@code
 * Message.json("{\"text\": \"hello\"}").withEventType("greeting").withTtl(Duration.ofMinutes(1))
 * }</pre>
 *
 * <p>Identifiers are 1 to 128 of {@code A-Z a-z 0-9 _ . : @ | -}; what breaks a limit is refused with BAD_REQUEST.
 */
public final class Message {
  private static final String PAYLOAD = "message.payload";

  private final sidecar.api.v1.Message proto;

  private Message(sidecar.api.v1.Message proto) {
    this.proto = proto;
  }

  /**
   * A JSON message.
   *
   * @param json exactly one RFC 8259 value; the sidecar parses it and hands it on unchanged
   * @return the message
   */
  public static Message json(String json) {
    return of(Texts.utf8(json, PAYLOAD), sidecar.api.v1.ContentType.CONTENT_TYPE_JSON);
  }

  /**
   * A text message.
   *
   * @param text any text; reaches the client as a string
   * @return the message
   */
  public static Message text(String text) {
    return of(Texts.utf8(text, PAYLOAD), sidecar.api.v1.ContentType.CONTENT_TYPE_TEXT);
  }

  /**
   * A binary message.
   *
   * @param bytes any bytes, copied; reach the client in base64
   * @return the message
   */
  public static Message binary(byte[] bytes) {
    return of(ByteString.copyFrom(bytes), sidecar.api.v1.ContentType.CONTENT_TYPE_BINARY);
  }

  /**
   * A message of bytes that are encoded already.
   *
   * @param payload the content, copied
   * @param contentType how it is to be read
   * @return the message
   */
  public static Message of(byte[] payload, ContentType contentType) {
    return of(ByteString.copyFrom(payload), Protos.contentType(contentType));
  }

  private static Message of(ByteString payload, sidecar.api.v1.ContentType contentType) {
    return new Message(
        sidecar.api.v1.Message.newBuilder().setPayload(payload).setContentType(contentType).build());
  }

  /**
   * With that kind of message, for the client to dispatch on.
   *
   * @param eventType an identifier
   * @return another message
   */
  public Message withEventType(String eventType) {
    return new Message(proto.toBuilder().setEventType(eventType).build());
  }

  /**
   * With that idempotency key: repeated with the same content it is delivered once. Made up if none is given.
   *
   * @param messageId an identifier
   * @return another message
   */
  public Message withMessageId(String messageId) {
    return new Message(proto.toBuilder().setMessageId(messageId).build());
  }

  /**
   * Kept that long for a client that is away.
   *
   * @param ttl more than nothing, at most a day. Default: the sidecar's
   * @return another message
   */
  public Message withTtl(Duration ttl) {
    return new Message(proto.toBuilder().setTtl(Protos.duration(ttl, "message.ttl")).build());
  }

  /**
   * With these headers, handed to the client beside the payload.
   *
   * @param headers at most 32
   * @return another message
   */
  public Message withHeaders(Map<String, String> headers) {
    headers.values().forEach(value -> Texts.wellFormed(value, "message.headers"));
    return new Message(proto.toBuilder().clearHeaders().putAllHeaders(headers).build());
  }

  /**
   * Refused (DURABILITY_UNAVAILABLE) unless the store gives at least this.
   *
   * @param durability the least
   * @return another message
   */
  public Message withMinDurability(Durability durability) {
    return new Message(proto.toBuilder().setMinDurability(Protos.durability(durability)).build());
  }

  /**
   * As a critical event: never dropped for another, kept as long as its manager. Needs the scope {@code emit}; JSON only.
   *
   * @return another message
   */
  public Message asCritical() {
    return new Message(proto.toBuilder().setCritical(true).build());
  }

  /**
   * As the answer to a message of the client's.
   *
   * @param messageId the client's own id of it
   * @return another message
   */
  public Message withReplyTo(String messageId) {
    return new Message(proto.toBuilder().setReplyTo(messageId).build());
  }

  /**
   * As a chunk of a response stream.
   *
   * @param place its place
   * @return another message
   */
  public Message withStream(StreamPlace place) {
    return new Message(proto.toBuilder().setStream(Protos.stream(place)).build());
  }

  /** As the contract says it, always with a message_id: so a send may always be repeated. */
  sidecar.api.v1.Message toProto() {
    return proto.getMessageId().isEmpty()
        ? proto.toBuilder().setMessageId(Texts.newId()).build()
        : proto;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Message that && proto.equals(that.proto);
  }

  @Override
  public int hashCode() {
    return Objects.hashCode(proto);
  }

  /** Says nothing of the payload. */
  @Override
  public String toString() {
    return "Message[eventType=" + proto.getEventType() + ", bytes=" + proto.getPayload().size() + "]";
  }
}
