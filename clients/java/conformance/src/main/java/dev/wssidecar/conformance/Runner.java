package dev.wssidecar.conformance;

import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import dev.wssidecar.client.errors.SidecarException;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;

/**
 * Turns one command a line into one call of the client, and prints what came of it (clients/conformance/README.md). Each is
 * begun when it is read, in that order; its answer may come in any.
 */
public final class Runner {
  /** Begins one command; what it gives is done when the command is. */
  @FunctionalInterface
  interface Command {
    CompletableFuture<JsonObject> begin(JsonObject with) throws Exception;
  }

  private final Map<String, Command> commands = new HashMap<>();
  private final PrintStream out;

  private Runner(PrintStream out) {
    this.out = out;
    ServiceCommands service = new ServiceCommands();
    service.addTo(commands);
    new SenderCommands(service).addTo(commands);
    new AgentCommands(service).addTo(commands);
  }

  /**
   * Runs until standard input ends.
   *
   * @param arguments none
   * @throws IOException when standard input cannot be read
   */
  public static void main(String[] arguments) throws IOException {
    PrintStream out =
        new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8);
    System.setOut(System.err); // standard output is the protocol's alone
    Runner runner = new Runner(out);
    BufferedReader in =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      runner.take(JsonParser.parseString(line).getAsJsonObject());
    }
    System.exit(0); // whatever still waits
  }

  private void take(JsonObject command) {
    JsonObject answer = new JsonObject();
    answer.add("id", command.get("id"));
    JsonObject with =
        command.has("with") ? command.getAsJsonObject("with") : new JsonObject();
    begin(command.get("do").getAsString(), with)
        .whenComplete(
            (ok, error) -> {
              if (error == null) {
                answer.add("ok", ok);
              } else {
                answer.add("error", errorOf(error));
              }
              print(answer);
            });
  }

  private CompletableFuture<JsonObject> begin(String name, JsonObject with) {
    Command command = commands.get(name);
    if (command == null) {
      return CompletableFuture.failedFuture(new UnknownCommand(name));
    }
    try {
      return command.begin(with);
    } catch (Throwable failed) { // an Error too: it is an answer
      return CompletableFuture.failedFuture(failed);
    }
  }

  private void print(JsonObject answer) {
    String line = Json.text(answer);
    synchronized (out) {
      out.print(line + "\n");
      out.flush();
    }
  }

  private static JsonObject errorOf(Throwable failed) {
    Throwable error =
        failed instanceof CompletionException && failed.getCause() != null
            ? failed.getCause()
            : failed;
    if (error instanceof SidecarException refusal) {
      return Json.error(refusal);
    }
    JsonObject json = new JsonObject();
    boolean unknown = error instanceof UnknownCommand;
    json.addProperty("reason", unknown ? "UNKNOWN_COMMAND" : "CRASH");
    json.addProperty("message", error.toString());
    if (!unknown) {
      error.printStackTrace();
    }
    return json;
  }

  private static final class UnknownCommand extends RuntimeException {
    private static final long serialVersionUID = 1L;

    private UnknownCommand(String name) {
      super(name);
    }
  }
}
