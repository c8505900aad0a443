package dev.wssidecar.examples.http;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import com.sun.net.httpserver.HttpExchange;
import dev.wssidecar.client.errors.IsolationViolationException;
import dev.wssidecar.client.errors.ManagerGoneException;
import dev.wssidecar.client.errors.OutboxFullException;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.TokenException;
import java.io.IOException;
import java.nio.charset.StandardCharsets;

/** What HTTP asks of a handler: one method, a small JSON body, and refusals as statuses. */
final class Http {
  private static final int MAX_BODY_BYTES = 16_384;

  /** Answers one request. */
  @FunctionalInterface
  interface Handler {
    void handle(HttpExchange exchange) throws IOException;
  }

  /** The request is refused with that status. */
  static final class Refused extends RuntimeException {
    private static final long serialVersionUID = 1L;
    private final int status;

    Refused(int status, String message) {
      super(message);
      this.status = status;
    }
  }

  private Http() {}

  /** A POST, answered by that handler. */
  static void post(HttpExchange exchange, Handler handler) throws IOException {
    try {
      if (!exchange.getRequestMethod().equals("POST")) {
        throw new Refused(405, "POST");
      }
      handler.handle(exchange);
    } catch (Refused refused) {
      answer(exchange, refused.status, named("detail", refused.getMessage()));
    } catch (SidecarException refusal) {
      refusal
          .retryAfter()
          .ifPresent(
              after -> {
                String seconds = Long.toString(Math.max(1, Math.round(after.toMillis() / 1e3)));
                exchange.getResponseHeaders().set("Retry-After", seconds);
              });
      answer(exchange, statusOf(refusal), named("reason", refusal.reason()));
    } finally {
      exchange.close();
    }
  }

  /** The sidecar's refusal as HTTP says it (RFC 9110 §15.5, §15.6); never its text. */
  private static int statusOf(SidecarException refusal) {
    if (refusal instanceof TokenException) {
      return 401;
    }
    if (refusal instanceof IsolationViolationException) {
      return 403;
    }
    if (refusal instanceof ManagerGoneException) {
      return 410;
    }
    return refusal instanceof OutboxFullException ? 429 : 503;
  }

  static JsonObject bodyOf(HttpExchange exchange) throws IOException {
    byte[] body = exchange.getRequestBody().readNBytes(MAX_BODY_BYTES + 1);
    if (body.length > MAX_BODY_BYTES) {
      throw new Refused(413, "that is a large body");
    }
    try {
      return JsonParser.parseString(new String(body, StandardCharsets.UTF_8)).getAsJsonObject();
    } catch (JsonParseException | IllegalStateException notJson) {
      throw new Refused(422, "the body is a JSON object");
    }
  }

  static String textOf(JsonObject body, String name) {
    JsonElement value = body.get(name);
    if (value == null || !value.isJsonPrimitive() || !value.getAsJsonPrimitive().isString()) {
      throw new Refused(422, name + " is a text");
    }
    return value.getAsString();
  }

  static void answer(HttpExchange exchange, int status, JsonObject json) throws IOException {
    byte[] body = json.toString().getBytes(StandardCharsets.UTF_8);
    exchange.getResponseHeaders().set("Content-Type", "application/json");
    exchange.sendResponseHeaders(status, body.length);
    exchange.getResponseBody().write(body);
  }

  private static JsonObject named(String name, String value) {
    JsonObject json = new JsonObject();
    json.addProperty(name, value);
    return json;
  }
}
