package dev.wssidecar.conformance;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.gson.JsonPrimitive;
import dev.wssidecar.client.Agent;
import dev.wssidecar.client.AgentContext;
import dev.wssidecar.client.AgentEvent;
import dev.wssidecar.client.InboundMessage;
import dev.wssidecar.client.SendOptions;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Deque;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;

/** One agent, whose events are handed on and whose message handlers wait for what to do. */
final class AgentUnderTest {
  private final Agent agent;
  private final Deque<JsonObject> events = new ArrayDeque<>();
  private final Deque<CompletableFuture<JsonObject>> takers = new ArrayDeque<>();
  private final List<AgentContext> contexts = new ArrayList<>();
  private final Map<Integer, ReplyUnderTest> replies = new ConcurrentHashMap<>();

  AgentUnderTest(Agent.Builder builder) {
    agent =
        builder
            .onOpened(context -> give("opened", context, null))
            .onAway(context -> give("away", context, null))
            .onBack(context -> give("back", context, null))
            .onClosed(this::closed)
            .onMessage(this::message)
            .build();
  }

  Agent agent() {
    return agent;
  }

  synchronized CompletableFuture<JsonObject> next() {
    JsonObject event = events.poll();
    if (event != null) {
      return CompletableFuture.completedFuture(event);
    }
    CompletableFuture<JsonObject> taker = new CompletableFuture<>();
    takers.add(taker);
    return taker;
  }

  CompletableFuture<JsonObject> contextSend(int handle, JsonObject message) {
    AgentContext context;
    synchronized (this) {
      context = contexts.get(handle);
    }
    return context.sendAsync(Json.message(message), SendOptions.NONE).thenApply(Json::receipt);
  }

  ReplyUnderTest reply(int handle) {
    ReplyUnderTest reply = replies.get(handle);
    if (reply == null) {
      throw new IllegalStateException("no message with the handle " + handle);
    }
    return reply;
  }

  private void closed(AgentContext context, AgentEvent.Closed closed) {
    JsonObject members = new JsonObject();
    members.addProperty("code", closed.code());
    members.addProperty("reason", closed.reason());
    give("closed", context, members);
  }

  private void message(AgentContext context, InboundMessage message) throws Exception {
    JsonObject members = new JsonObject();
    members.addProperty("id", message.id());
    members.addProperty("event", message.event());
    members.addProperty("content_type", message.contentType().name().toLowerCase(Locale.ROOT));
    members.add("data", data(message));
    members.addProperty("redelivered", message.redelivered());
    ReplyUnderTest reply = new ReplyUnderTest(message);
    JsonObject event;
    synchronized (this) {
      event = event("message", context, members);
      replies.put(event.get("handle").getAsInt(), reply);
    }
    hand(event);
    reply.serve();
  }

  private static JsonElement data(InboundMessage message) {
    return switch (message.contentType()) {
      case JSON -> JsonParser.parseString(message.text());
      case TEXT -> new JsonPrimitive(message.text());
      case BINARY -> new JsonPrimitive(Base64.getEncoder().encodeToString(message.payload()));
    };
  }

  private void give(String kind, AgentContext context, JsonObject members) {
    hand(event(kind, context, members));
  }

  private synchronized JsonObject event(String kind, AgentContext context, JsonObject members) {
    JsonObject event = members == null ? new JsonObject() : members;
    event.addProperty("handle", contexts.size());
    event.addProperty("kind", kind);
    event.addProperty("isolation_key", context.isolationKey());
    if (!kind.equals("closed")) {
      event.addProperty("context_token", context.contextToken());
    }
    event.add("user", Json.user(context.user()));
    contexts.add(context);
    return event;
  }

  private void hand(JsonObject event) {
    CompletableFuture<JsonObject> taker;
    synchronized (this) {
      taker = takers.poll();
      if (taker == null) {
        events.add(event);
      }
    }
    if (taker != null) {
      taker.complete(event);
    }
  }
}
