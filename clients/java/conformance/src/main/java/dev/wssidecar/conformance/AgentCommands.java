package dev.wssidecar.conformance;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import dev.wssidecar.client.Agent;
import dev.wssidecar.client.SidecarClient;
import dev.wssidecar.client.Subscription;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;

/** A service's agents: what their handlers are told is taken event by event, and they do what they are told. */
final class AgentCommands {
  private static final Duration ATTACH_TIMEOUT = Duration.ofSeconds(20);

  private final ServiceCommands service;
  private final Map<String, AgentUnderTest> agents = new ConcurrentHashMap<>();

  AgentCommands(ServiceCommands service) {
    this.service = service;
  }

  void addTo(Map<String, Runner.Command> commands) {
    commands.put("agent_open", with -> Later.get(() -> open(with)));
    commands.put("agent_next", with -> of(with).next());
    commands.put("context_send", with -> of(with).contextSend(handle(with), message(with)));
    commands.put("reply_send", this::replySend);
    commands.put("reply_end", with -> of(with).reply(handle(with)).end());
    commands.put("reply_fail", with -> of(with).reply(handle(with)).fail());
    commands.put("reply_cancelled", with -> of(with).reply(handle(with)).cancelled());
    commands.put("agent_close", with -> Later.run(() -> close(with)));
  }

  private void close(JsonObject with) {
    of(with).agent().stop(); // what it has begun is still answered meanwhile
    agents.remove(name(with));
  }

  private static String name(JsonObject with) {
    return Json.string(with, "agent");
  }

  private AgentUnderTest of(JsonObject with) {
    AgentUnderTest agent = agents.get(name(with));
    if (agent == null) {
      throw new IllegalStateException("no agent " + name(with));
    }
    return agent;
  }

  private static int handle(JsonObject with) {
    return with.get("handle").getAsInt();
  }

  private static JsonObject message(JsonObject with) {
    return with.getAsJsonObject("message");
  }

  private JsonObject open(JsonObject with) throws InterruptedException {
    SidecarClient client = service.of(with);
    Agent.Builder builder = Agent.builder(Json.string(with, "service_name")).client(client);
    if (with.has("events")) {
      List<Subscription> taken = new ArrayList<>();
      for (JsonElement each : with.getAsJsonArray("events")) {
        taken.add(Subscription.to(each.getAsString()));
      }
      builder.subscriptions(taken);
    }
    if (with.has("credits")) {
      builder.credits(with.get("credits").getAsInt());
    }
    AgentUnderTest agent = new AgentUnderTest(builder);
    agents.put(name(with), agent);
    agent.agent().start().waitAttached(ATTACH_TIMEOUT);
    return new JsonObject();
  }

  private CompletableFuture<JsonObject> replySend(JsonObject with) {
    return of(with)
        .reply(handle(with))
        .send(message(with), Json.string(with, "event_type"), Json.string(with, "stream_id"));
  }
}
