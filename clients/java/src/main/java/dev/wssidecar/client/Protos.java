package dev.wssidecar.client;

import com.google.protobuf.Timestamp;
import dev.wssidecar.client.errors.SidecarExceptions;
import java.time.Duration;
import java.time.Instant;
import sidecar.api.v1.Stream;
import sidecar.api.v1.StreamState;

/** Values of the contract as values of this client, and back. What came after this version is read as the least. */
final class Protos {
  /** google.protobuf.Duration's own bound, in seconds: 10,000 years. */
  private static final long MAX_DURATION_S = 315_576_000_000L;

  private Protos() {}

  static Receipt receipt(sidecar.api.v1.Receipt receipt) {
    return new Receipt(
        receipt.getMessageId(),
        receipt.getSequence(),
        state(receipt.getState()),
        durability(receipt.getDurability()),
        receipt.getConnections(),
        receipt.getDuplicate(),
        instant(receipt.getAcceptedTime()));
  }

  private static DeliveryState state(sidecar.api.v1.DeliveryState state) {
    return switch (state) {
      case DELIVERY_STATE_WRITTEN -> DeliveryState.WRITTEN;
      case DELIVERY_STATE_ACKNOWLEDGED -> DeliveryState.ACKNOWLEDGED;
      case DELIVERY_STATE_DROPPED -> DeliveryState.DROPPED;
      default -> DeliveryState.QUEUED;
    };
  }

  private static Durability durability(sidecar.api.v1.Durability durability) {
    return switch (durability) {
      case DURABILITY_DISK -> Durability.DISK;
      case DURABILITY_REPLICATED -> Durability.REPLICATED;
      default -> Durability.MEMORY;
    };
  }

  static sidecar.api.v1.Durability durability(Durability durability) {
    return switch (durability) {
      case MEMORY -> sidecar.api.v1.Durability.DURABILITY_MEMORY;
      case DISK -> sidecar.api.v1.Durability.DURABILITY_DISK;
      case REPLICATED -> sidecar.api.v1.Durability.DURABILITY_REPLICATED;
    };
  }

  static sidecar.api.v1.ContentType contentType(ContentType contentType) {
    return switch (contentType) {
      case JSON -> sidecar.api.v1.ContentType.CONTENT_TYPE_JSON;
      case TEXT -> sidecar.api.v1.ContentType.CONTENT_TYPE_TEXT;
      case BINARY -> sidecar.api.v1.ContentType.CONTENT_TYPE_BINARY;
    };
  }

  static ContentType contentType(sidecar.api.v1.ContentType contentType) {
    return switch (contentType) {
      case CONTENT_TYPE_JSON -> ContentType.JSON;
      case CONTENT_TYPE_TEXT -> ContentType.TEXT;
      default -> ContentType.BINARY;
    };
  }

  static sidecar.api.v1.BroadcastScope scope(BroadcastScope scope) {
    return switch (scope) {
      case USER -> sidecar.api.v1.BroadcastScope.BROADCAST_SCOPE_USER;
      case TENANT -> sidecar.api.v1.BroadcastScope.BROADCAST_SCOPE_TENANT;
    };
  }

  static Stream stream(StreamPlace place) {
    return Stream.newBuilder()
        .setStreamId(place.streamId())
        .setIndex(place.index())
        .setState(
            switch (place.state()) {
              case OPEN -> StreamState.STREAM_STATE_OPEN;
              case END -> StreamState.STREAM_STATE_END;
              case ERROR -> StreamState.STREAM_STATE_ERROR;
            })
        .build();
  }

  static UserContext userContext(sidecar.api.v1.UserContext context) {
    return new UserContext(
        context.getTenantId(),
        context.getUserId(),
        context.getSessionId(),
        context.getConnectionId(),
        context.getRequestId(),
        instant(context.getCreatedTime()),
        context.getPermissionsList(),
        context.getMetadataMap());
  }

  static Instant instant(Timestamp time) {
    return Instant.ofEpochSecond(time.getSeconds(), time.getNanos());
  }

  /** Throws BAD_REQUEST for what a google.protobuf.Duration cannot hold. */
  static com.google.protobuf.Duration duration(Duration span, String field) {
    if (Math.abs(span.getSeconds()) >= MAX_DURATION_S) {
      throw SidecarExceptions.badRequest(field, "a number of seconds");
    }
    // Both parts have one sign there; here the seconds are floored.
    boolean mixed = span.isNegative() && span.getNano() > 0;
    return com.google.protobuf.Duration.newBuilder()
        .setSeconds(span.getSeconds() + (mixed ? 1 : 0))
        .setNanos(span.getNano() - (mixed ? 1_000_000_000 : 0))
        .build();
  }
}
