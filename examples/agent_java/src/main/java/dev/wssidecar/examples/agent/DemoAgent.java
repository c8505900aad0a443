package dev.wssidecar.examples.agent;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import dev.wssidecar.client.Agent;
import dev.wssidecar.client.AgentContext;
import dev.wssidecar.client.InboundMessage;
import dev.wssidecar.client.Message;
import dev.wssidecar.client.Recipient;
import dev.wssidecar.client.ReplyStream;
import dev.wssidecar.client.SidecarClient;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.StreamCancelledException;
import java.time.Duration;
import java.util.logging.Logger;

/** Attached to the sidecar, it answers word by word, stops when told to, and tries what must fail. */
final class DemoAgent {
  private static final long PAUSE_MS = 40;
  private static final int MAX_QUESTION_CHARACTERS = 2_000;
  private static final Logger LOG = Logger.getLogger("demo_agent");

  private final SidecarClient client;

  DemoAgent(SidecarClient client) {
    this.client = client;
  }

  Agent agent() {
    return Agent.builder("demo")
        .client(client)
        .grace(Duration.ofSeconds(1))
        .onMessage("ask", this::ask)
        .onMessage("attack", this::attack)
        .build();
  }

  /** Answers a question word by word, until it is all said or the user has heard enough. */
  private void ask(AgentContext context, InboundMessage message) throws InterruptedException {
    ReplyStream stream = message.reply("agent.word");
    int said = 0;
    try {
      for (String word : Answers.to(context.user().userId(), textOf(message, "question"))) {
        stream.sendText(word);
        said++;
        Thread.sleep(PAUSE_MS); // a model would be thinking
      }
    } catch (InterruptedException | StreamCancelledException told) {
      LOG.info("stopped after " + said + " words");
      if (message.isCancelled() && !context.ended()) {
        sayStopped(context, message, said);
      }
      throw told;
    }
  }

  private static void sayStopped(AgentContext context, InboundMessage message, int said) {
    JsonObject stopped = new JsonObject();
    stopped.addProperty("words", said);
    try {
      context.send(answerTo(message, stopped, "agent.stopped"));
    } catch (SidecarException gone) {
      LOG.fine("the user is not there to be told");
    }
  }

  /** Sends into a context that the user chose, with the user's own token; says what the sidecar answered. */
  private void attack(AgentContext context, InboundMessage message) {
    String user = context.user().userId();
    JsonObject from = new JsonObject();
    from.addProperty("from", user);
    Recipient victim =
        Recipient.of(textOf(message, "victim_isolation_key"), context.contextToken())
            .expecting(user);
    JsonObject verdict = new JsonObject();
    try {
      client.sendToUser(victim, Message.json(from.toString()).withEventType("agent.attack"));
      verdict.addProperty("code", "OK");
      verdict.addProperty("reason", "");
    } catch (SidecarException refusal) {
      verdict.addProperty("code", refusal.code().name());
      verdict.addProperty("reason", refusal.reason());
    }
    context.send(answerTo(message, verdict, "agent.verdict"));
  }

  private static Message answerTo(InboundMessage message, JsonObject json, String eventType) {
    return Message.json(json.toString()).withEventType(eventType).withReplyTo(message.id());
  }

  /** That member of what a page sent, as far as it is text: what a user says is never trusted to be anything. */
  private static String textOf(InboundMessage message, String name) {
    try {
      JsonElement value = JsonParser.parseString(message.text()).getAsJsonObject().get(name);
      String text = value.getAsJsonPrimitive().isString() ? value.getAsString() : "";
      return text.substring(0, Math.min(text.length(), MAX_QUESTION_CHARACTERS));
    } catch (JsonParseException | IllegalStateException | NullPointerException notText) {
      return "";
    }
  }
}
