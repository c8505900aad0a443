package dev.wssidecar.examples.agent;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/** What the demo agent knows. A real one asks a model here. */
final class Answers {
  private static final List<Answer> ALL =
      List.of(
          new Answer(
              List.of("token"),
              "A context token says where a message may go: to the one connection context that you opened, for a quarter"
                  + " of an hour, and for what its scopes allow. The sidecar gave it to me with your question."),
          new Answer(
              List.of("break", "lost", "lose", "connection", "reconnect", "reload"),
              "Your page comes back by itself and resumes the context that it had: what I said meanwhile waits in the"
                  + " outbox, and arrives in order, each word once. Try it: reload this page now."),
          new Answer(
              List.of("stop", "cancel", "enough"),
              "Press stop, and your page sends one frame: cancel, with the id of your question. The sidecar closes this"
                  + " stream on the spot and tells me at once: the thread of my handler is interrupted, and nobody else's."
                  + " I can go on for a while if you would like to try it."),
          new Answer(
              List.of(),
              "Every word of this answer is a chunk of one response stream. All of them leave me on one gRPC stream that"
                  + " all users share, on a lane that only your context token opens. Somebody else's answer may be on the"
                  + " same stream right now: it has another lane, another manager, and another socket."));

  private record Answer(List<String> keywords, String text) {}

  private Answers() {}

  /** The words of an answer, each with the blank after it. */
  static List<String> to(String user, String question) {
    String asked = question.toLowerCase(Locale.ROOT);
    Answer answer =
        ALL.stream()
            .filter(each -> each.keywords.isEmpty() || each.keywords.stream().anyMatch(asked::contains))
            .findFirst()
            .orElseThrow();
    String text = "Hello " + user + ". You asked: “" + question + "” " + answer.text;
    List<String> words = new ArrayList<>();
    for (String word : text.strip().split("\\s+")) {
      words.add(word + " ");
    }
    return words;
  }
}
