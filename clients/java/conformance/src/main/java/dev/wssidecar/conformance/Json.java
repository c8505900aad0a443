package dev.wssidecar.conformance;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import dev.wssidecar.client.BatchResult;
import dev.wssidecar.client.Durability;
import dev.wssidecar.client.Message;
import dev.wssidecar.client.Receipt;
import dev.wssidecar.client.Recipient;
import dev.wssidecar.client.SendOptions;
import dev.wssidecar.client.StreamPlace;
import dev.wssidecar.client.StreamState;
import dev.wssidecar.client.UserContext;
import dev.wssidecar.client.errors.SidecarException;
import java.time.Duration;
import java.time.Instant;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** The runner's words as the client's values, and back. */
final class Json {
  private static final Gson GSON =
      new GsonBuilder().disableHtmlEscaping().serializeNulls().create();

  private Json() {}

  static String text(JsonElement json) {
    return GSON.toJson(json);
  }

  static String string(JsonObject with, String name) {
    return string(with, name, "");
  }

  static String string(JsonObject with, String name, String absent) {
    return with.has(name) && !with.get(name).isJsonNull() ? with.get(name).getAsString() : absent;
  }

  static Duration seconds(JsonObject with, String name) {
    return with.has(name) && !with.get(name).isJsonNull()
        ? Duration.ofNanos(Math.round(with.get(name).getAsDouble() * 1e9))
        : null;
  }

  static Recipient recipient(JsonObject with) {
    return Recipient.of(string(with, "isolation_key"), string(with, "context_token"))
        .expecting(string(with, "expected_user_id"));
  }

  static SendOptions options(JsonObject with) {
    return new SendOptions(seconds(with, "timeout_s"), seconds(with, "wait_for_ack_s"));
  }

  static Message message(JsonObject json) {
    Message message = content(json);
    if (json.has("event_type")) {
      message = message.withEventType(string(json, "event_type"));
    }
    if (json.has("message_id")) {
      message = message.withMessageId(string(json, "message_id"));
    }
    if (json.has("ttl_s")) {
      message = message.withTtl(seconds(json, "ttl_s"));
    }
    if (json.has("headers")) {
      message = message.withHeaders(headers(json.getAsJsonObject("headers")));
    }
    if (json.has("critical") && json.get("critical").getAsBoolean()) {
      message = message.asCritical();
    }
    if (json.has("reply_to")) {
      message = message.withReplyTo(string(json, "reply_to"));
    }
    if (json.has("min_durability")) {
      message = message.withMinDurability(Durability.valueOf(string(json, "min_durability")));
    }
    return json.has("stream") ? message.withStream(place(json.getAsJsonObject("stream"))) : message;
  }

  private static Message content(JsonObject json) {
    if (json.has("text")) {
      return Message.text(string(json, "text"));
    }
    if (json.has("binary")) {
      return Message.binary(Base64.getDecoder().decode(string(json, "binary")));
    }
    return Message.json(text(json.get("json")));
  }

  private static Map<String, String> headers(JsonObject json) {
    Map<String, String> headers = new HashMap<>();
    json.entrySet().forEach(each -> headers.put(each.getKey(), each.getValue().getAsString()));
    return headers;
  }

  private static StreamPlace place(JsonObject json) {
    String state = string(json, "state", "open").toUpperCase(Locale.ROOT);
    return new StreamPlace(
        string(json, "stream_id"), json.get("index").getAsLong(), StreamState.valueOf(state));
  }

  static JsonObject receipt(Receipt receipt) {
    JsonObject json = new JsonObject();
    json.addProperty("message_id", receipt.messageId());
    json.addProperty("sequence", receipt.sequence());
    json.addProperty("state", receipt.state().name());
    json.addProperty("durability", receipt.durability().name());
    json.addProperty("connections", receipt.connections());
    json.addProperty("duplicate", receipt.duplicate());
    json.addProperty("accepted_time", unix(receipt.acceptedTime()));
    return json;
  }

  static JsonObject results(List<BatchResult> results) {
    JsonArray array = new JsonArray();
    for (BatchResult each : results) {
      JsonObject result = new JsonObject();
      if (each instanceof BatchResult.Accepted accepted) {
        result.add("receipt", receipt(accepted.receipt()));
      } else if (each instanceof BatchResult.Refused refused) {
        result.add("error", error(refused.error()));
      }
      array.add(result);
    }
    JsonObject json = new JsonObject();
    json.add("results", array);
    return json;
  }

  static JsonObject error(SidecarException error) {
    JsonObject json = new JsonObject();
    json.addProperty("code", error.code().name());
    json.addProperty("reason", error.reason());
    json.addProperty("definite", error.definite());
    error.retryAfter().ifPresent(after -> json.addProperty("retry_after_s", after.toNanos() / 1e9));
    return json;
  }

  static JsonObject user(UserContext user) {
    JsonObject json = new JsonObject();
    json.addProperty("tenant_id", user.tenantId());
    json.addProperty("user_id", user.userId());
    json.addProperty("session_id", user.sessionId());
    json.addProperty("connection_id", user.connectionId());
    json.addProperty("request_id", user.requestId());
    json.addProperty("created_time", unix(user.createdTime()));
    json.add("permissions", strings(user.permissions()));
    JsonObject metadata = new JsonObject();
    user.metadata().forEach(metadata::addProperty);
    json.add("metadata", metadata);
    return json;
  }

  static JsonArray strings(List<String> strings) {
    JsonArray array = new JsonArray();
    strings.forEach(array::add);
    return array;
  }

  static double unix(Instant time) {
    return time.getEpochSecond() + time.getNano() / 1e9;
  }
}
