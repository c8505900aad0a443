package dev.wssidecar.examples.http;

import com.google.gson.JsonObject;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import dev.wssidecar.client.ContextFacts;
import dev.wssidecar.client.Message;
import dev.wssidecar.client.Recipient;
import dev.wssidecar.client.SidecarClient;
import dev.wssidecar.client.StreamPlace;
import dev.wssidecar.client.StreamState;
import dev.wssidecar.client.errors.ManagerGoneException;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.StreamCancelledException;
import java.io.IOException;
import java.util.Optional;
import java.util.UUID;
import java.util.concurrent.Executor;
import java.util.logging.Logger;

/** An HTTP service: a page asks with its context token, the answer comes over its WebSocket. */
final class Service {
  private static final long PAUSE_MS = 40;
  private static final int MAX_QUESTION_CHARACTERS = 2_000;
  private static final String USER_ID = "[A-Za-z0-9_.@-]{1,64}";
  private static final Logger LOG = Logger.getLogger("http_java");

  private final SidecarClient sidecar;
  private final Executor background;
  private final Sessions sessions = new Sessions();

  Service(SidecarClient sidecar, Executor background) {
    this.sidecar = sidecar;
    this.background = background;
  }

  void addTo(HttpServer server) {
    server.createContext("/sign-in", exchange -> Http.post(exchange, this::signIn));
    server.createContext("/ask", exchange -> Http.post(exchange, this::ask));
  }

  /** A session cookie, as the service's pages have one already. */
  private void signIn(HttpExchange exchange) throws IOException {
    String userId = Http.textOf(Http.bodyOf(exchange), "user_id");
    if (!userId.matches(USER_ID)) {
      throw new Http.Refused(422, "user_id is an identifier");
    }
    exchange.getResponseHeaders().add("Set-Cookie", sessions.cookieFor(userId));
    exchange.sendResponseHeaders(204, -1);
  }

  /** Answers to the context that the page's token names, which must be the signed-in user's own. */
  private void ask(HttpExchange exchange) throws IOException {
    // Who asks, by the service's own authentication and by nothing else.
    String userId =
        sessions.userOf(exchange).orElseThrow(() -> new Http.Refused(401, "sign in first"));
    String contextToken =
        Optional.ofNullable(exchange.getRequestHeaders().getFirst("X-Context-Token")).orElse("");
    String question = Http.textOf(Http.bodyOf(exchange), "question");
    if (question.length() > MAX_QUESTION_CHARACTERS) {
      throw new Http.Refused(422, "that is a long question");
    }
    ContextFacts context = sidecar.getContext(contextToken);
    Recipient to = Recipient.of(context.isolationKey(), contextToken).expecting(userId);
    String streamId = UUID.randomUUID().toString();
    String[] words = ("You asked: " + question).strip().split("\\s+");
    send(to, streamId, words, 0); // what the sidecar refuses, it refuses here: the page is told
    background.execute(() -> finish(to, streamId, words));
    JsonObject answer = new JsonObject();
    answer.addProperty("stream_id", streamId);
    Http.answer(exchange, 202, answer);
  }

  /** Sends the word of that place, or the end of the stream behind the last. */
  private void send(Recipient to, String streamId, String[] words, int index) {
    boolean last = index == words.length;
    StreamState state = last ? StreamState.END : StreamState.OPEN;
    sidecar.sendToUser(
        to,
        Message.text(last ? "" : words[index] + " ")
            .withEventType("answer")
            .withStream(new StreamPlace(streamId, index, state)));
  }

  /** Sends the rest; stops when the user has heard enough, or is gone. */
  private void finish(Recipient to, String streamId, String[] words) {
    try {
      for (int index = 1; index <= words.length; index++) {
        Thread.sleep(PAUSE_MS); // a model would be thinking
        send(to, streamId, words, index);
      }
    } catch (StreamCancelledException | ManagerGoneException over) {
      LOG.info("nobody listens any more: " + over.reason());
    } catch (SidecarException refusal) {
      LOG.warning("an answer could not be sent: " + refusal.reason() + " " + refusal.code());
    } catch (InterruptedException stopping) {
      Thread.currentThread().interrupt();
    }
  }
}
