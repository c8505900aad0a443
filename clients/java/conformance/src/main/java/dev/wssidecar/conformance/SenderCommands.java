package dev.wssidecar.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import dev.wssidecar.client.BatchResult;
import dev.wssidecar.client.Message;
import dev.wssidecar.client.Receipt;
import dev.wssidecar.client.Recipient;
import dev.wssidecar.client.SendOptions;
import dev.wssidecar.client.Sender;
import dev.wssidecar.client.SenderBuilder;
import dev.wssidecar.client.errors.SidecarException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.LongAdder;

/** A service's senders, and the load that keeps one full. */
final class SenderCommands {
  private final ServiceCommands service;
  private final Map<String, Sender> senders = new ConcurrentHashMap<>();

  SenderCommands(ServiceCommands service) {
    this.service = service;
  }

  void addTo(Map<String, Runner.Command> commands) {
    commands.put("sender_open", this::open);
    commands.put("sender_send", this::send);
    commands.put("sender_send_many", this::sendMany);
    commands.put("sender_close", with -> Later.run(() -> senders.remove(name(with)).close()));
    commands.put("load", with -> Later.get(() -> load(with)));
  }

  private static String name(JsonObject with) {
    return Json.string(with, "sender");
  }

  private CompletableFuture<JsonObject> open(JsonObject with) {
    SenderBuilder builder = service.of(with).senderBuilder();
    if (with.has("report_acknowledged") && with.get("report_acknowledged").getAsBoolean()) {
      builder.reportAcknowledged();
    }
    senders.put(name(with), builder.build());
    return CompletableFuture.completedFuture(new JsonObject());
  }

  private CompletableFuture<JsonObject> send(JsonObject with) {
    return senders
        .get(name(with))
        .sendAsync(
            Json.recipient(with),
            Json.message(with.getAsJsonObject("message")),
            Json.options(with))
        .thenApply(Json::receipt);
  }

  private CompletableFuture<JsonObject> sendMany(JsonObject with) {
    Sender sender = senders.get(name(with));
    Recipient to = Json.recipient(with);
    SendOptions options = Json.options(with);
    List<CompletableFuture<BatchResult>> begun = new ArrayList<>();
    for (JsonElement each : with.getAsJsonArray("messages")) {
      Message message = Json.message(each.getAsJsonObject());
      begun.add(sender.sendAsync(to, message, options).handle(SenderCommands::result));
    }
    return CompletableFuture.allOf(begun.toArray(CompletableFuture[]::new))
        .thenApply(done -> Json.results(begun.stream().map(CompletableFuture::join).toList()));
  }

  private static BatchResult result(Receipt receipt, Throwable error) {
    return error instanceof SidecarException refusal
        ? new BatchResult.Refused(refusal)
        : new BatchResult.Accepted(receipt);
  }

  /** Round and round the targets; a full sender holds this thread back. */
  private JsonObject load(JsonObject with) {
    JsonArray named = with.getAsJsonArray("targets");
    Recipient[] targets = new Recipient[named.size()];
    for (int at = 0; at < targets.length; at++) {
      targets[at] = Json.recipient(named.get(at).getAsJsonObject());
    }
    Message message =
        Message.json('"' + "x".repeat(with.get("payload_bytes").getAsInt() - 2) + '"');
    LongAdder sent = new LongAdder();
    LongAdder refused = new LongAdder();
    long began = System.nanoTime();
    long end = began + Json.seconds(with, "seconds").toNanos();
    try (Sender sender = service.of(with).sender()) {
      for (int at = 0; System.nanoTime() - end < 0; at = (at + 1) % targets.length) {
        sender
            .sendAsync(targets[at], message)
            .whenComplete((receipt, error) -> (error == null ? sent : refused).increment());
      }
    }
    JsonObject json = new JsonObject();
    json.addProperty("sent", sent.sum());
    json.addProperty("refused", refused.sum());
    json.addProperty("seconds", (System.nanoTime() - began) / 1e9);
    return json;
  }
}
