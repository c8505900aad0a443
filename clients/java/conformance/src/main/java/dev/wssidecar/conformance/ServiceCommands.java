package dev.wssidecar.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import dev.wssidecar.client.BatchItem;
import dev.wssidecar.client.BroadcastScope;
import dev.wssidecar.client.ContextFacts;
import dev.wssidecar.client.ContextGrant;
import dev.wssidecar.client.ContextToken;
import dev.wssidecar.client.CriticalEvent;
import dev.wssidecar.client.ManagerStats;
import dev.wssidecar.client.SidecarClient;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;

/** A service's clients and their unary calls. */
final class ServiceCommands {
  private static final Duration READY = Duration.ofSeconds(20);

  private final Map<String, SidecarClient> clients = new ConcurrentHashMap<>();

  void addTo(Map<String, Runner.Command> commands) {
    commands.put("open", this::open);
    commands.put("close", with -> Later.run(() -> clients.remove(name(with)).close()));
    commands.put("send_to_user", this::sendToUser);
    commands.put("emit_critical_event", this::emitCriticalEvent);
    commands.put("send_batch", this::sendBatch);
    commands.put("broadcast", this::broadcast);
    commands.put("close_manager", this::closeManager);
    commands.put("get_manager_stats", this::getManagerStats);
    commands.put("get_context", this::getContext);
    commands.put("refresh_context_token", this::refreshContextToken);
    commands.put("revoke_context_token", this::revokeContextToken);
    commands.put("exchange_context_token", this::exchangeContextToken);
  }

  SidecarClient of(JsonObject with) {
    SidecarClient client = clients.get(name(with));
    if (client == null) {
      throw new IllegalStateException("no client " + name(with));
    }
    return client;
  }

  private static String name(JsonObject with) {
    return Json.string(with, "client");
  }

  private CompletableFuture<JsonObject> open(JsonObject with) throws IOException {
    SidecarClient.Builder builder =
        SidecarClient.builder()
            .endpoint(Json.string(with, "endpoint"))
            .serviceToken(Json.string(with, "service_token"));
    if (with.has("ca_file")) {
      File ca = new File(Json.string(with, "ca_file"));
      builder.credentials(TlsChannelCredentials.newBuilder().trustManager(ca).build());
    }
    if (with.has("timeout_s")) {
      builder.timeout(Json.seconds(with, "timeout_s"));
    }
    SidecarClient client = builder.build();
    clients.put(name(with), client);
    Duration ready = with.has("ready_s") ? Json.seconds(with, "ready_s") : READY;
    return ready.isZero()
        ? CompletableFuture.completedFuture(new JsonObject())
        : client.withTimeout(ready).waitUntilReadyAsync().thenApply(done -> new JsonObject());
  }

  private CompletableFuture<JsonObject> sendToUser(JsonObject with) {
    return of(with)
        .sendToUserAsync(
            Json.recipient(with),
            Json.message(with.getAsJsonObject("message")),
            Json.options(with))
        .thenApply(Json::receipt);
  }

  private CompletableFuture<JsonObject> emitCriticalEvent(JsonObject with) {
    CriticalEvent event =
        new CriticalEvent(
            Json.string(with, "event_type"),
            Json.text(with.get("data")),
            Json.string(with, "message_id"));
    return of(with)
        .emitCriticalEventAsync(Json.recipient(with), event, Json.options(with))
        .thenApply(Json::receipt);
  }

  private CompletableFuture<JsonObject> sendBatch(JsonObject with) {
    List<BatchItem> items = new ArrayList<>();
    for (JsonElement each : with.getAsJsonArray("items")) {
      JsonObject item = each.getAsJsonObject();
      items.add(
          new BatchItem(
              Json.recipient(item), Json.message(item.getAsJsonObject("message"))));
    }
    return of(with).sendBatchAsync(items).thenApply(Json::results);
  }

  private CompletableFuture<JsonObject> broadcast(JsonObject with) {
    BroadcastScope scope =
        BroadcastScope.valueOf(Json.string(with, "scope").toUpperCase(Locale.ROOT));
    return of(with)
        .broadcastAsync(
            Json.string(with, "context_token"),
            scope,
            Json.message(with.getAsJsonObject("message")))
        .thenApply(
            result -> {
              JsonObject json = new JsonObject();
              json.addProperty("managers", result.managers());
              json.addProperty("connections", result.connections());
              json.addProperty("refused", result.refused());
              return json;
            });
  }

  private CompletableFuture<JsonObject> closeManager(JsonObject with) {
    int code = with.has("code") ? with.get("code").getAsInt() : 0;
    return of(with)
        .closeManagerAsync(Json.recipient(with), code, Json.string(with, "reason"))
        .thenApply(
            connections -> {
              JsonObject json = new JsonObject();
              json.addProperty("connections", connections);
              return json;
            });
  }

  private CompletableFuture<JsonObject> getManagerStats(JsonObject with) {
    return of(with).getManagerStatsAsync(Json.recipient(with)).thenApply(ServiceCommands::stats);
  }

  private static JsonObject stats(ManagerStats stats) {
    JsonObject json = new JsonObject();
    json.addProperty("connections_managed", stats.connectionsManaged());
    json.addProperty("messages_sent_total", stats.messagesSentTotal());
    json.addProperty("messages_failed_total", stats.messagesFailedTotal());
    json.addProperty("last_activity_time", Json.unix(stats.lastActivityTime()));
    json.addProperty("manager_age_seconds", stats.managerAge().toNanos() / 1e9);
    json.addProperty("cleanup_scheduled", stats.cleanupScheduled());
    json.addProperty("outbox_messages", stats.outboxMessages());
    json.addProperty("outbox_bytes", stats.outboxBytes());
    return json;
  }

  private CompletableFuture<JsonObject> getContext(JsonObject with) {
    return of(with)
        .getContextAsync(Json.string(with, "context_token"))
        .thenApply(ServiceCommands::facts);
  }

  private static JsonObject facts(ContextFacts facts) {
    JsonObject json = new JsonObject();
    json.addProperty("isolation_key", facts.isolationKey());
    json.add("context", Json.user(facts.context()));
    json.add("scopes", Json.strings(facts.scopes()));
    json.addProperty("expire_time", Json.unix(facts.expireTime()));
    return json;
  }

  private CompletableFuture<JsonObject> refreshContextToken(JsonObject with) {
    return of(with)
        .refreshContextTokenAsync(Json.string(with, "context_token"))
        .thenApply(ServiceCommands::token);
  }

  private static JsonObject token(ContextToken token) {
    JsonObject json = new JsonObject();
    json.addProperty("context_token", token.text());
    json.addProperty("expire_time", Json.unix(token.expireTime()));
    return json;
  }

  private CompletableFuture<JsonObject> revokeContextToken(JsonObject with) {
    return of(with)
        .revokeContextTokenAsync(Json.string(with, "context_token"))
        .thenApply(done -> new JsonObject());
  }

  private CompletableFuture<JsonObject> exchangeContextToken(JsonObject with) {
    JsonArray named = with.has("scopes") ? with.getAsJsonArray("scopes") : new JsonArray();
    List<String> scopes = new ArrayList<>();
    named.forEach(scope -> scopes.add(scope.getAsString()));
    return of(with)
        .exchangeContextTokenAsync(
            Json.string(with, "user_token"), Json.string(with, "connection_id"), scopes)
        .thenApply(ServiceCommands::grant);
  }

  private static JsonObject grant(ContextGrant grant) {
    JsonObject json = token(grant.token());
    json.addProperty("isolation_key", grant.isolationKey());
    json.add("context", Json.user(grant.context()));
    return json;
  }
}
