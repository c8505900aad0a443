package dev.wssidecar.client;

import static dev.wssidecar.client.Attached.event;
import static dev.wssidecar.client.Attached.inbound;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import io.grpc.Status;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What an agent does of a token that was refused, against a scripted sidecar. */
@Timeout(30)
class TokenRefreshTest {
  @Test
  void anEventHasAContextRefreshedAgainWhoseTokenWasRefused() throws Exception {
    try (ScriptedSidecar server = new ScriptedSidecar();
        SidecarClient client = server.client().build()) {
      server.refreshRefusal = ScriptedSidecar.error(Status.Code.UNAUTHENTICATED, "TOKEN_EXPIRED", -1);
      BlockingQueue<AgentContext> contexts = new LinkedBlockingQueue<>();
      Agent agent =
          Agent.builder("answers")
              .client(client)
              .onMessage((context, message) -> contexts.add(context))
              .build()
              .start();
      Attached attached = new Attached(server.nextAttach());
      attached.register();
      List<String> came = new ArrayList<>();
      List<AgentContext> held = new ArrayList<>();
      // The same one again is not asked for.
      for (String token : List.of(token(1), token(1), token(2))) {
        attached.say(
            event("d" + held.size(), "key-a")
                .setContextToken(token)
                .setMessage(inbound("m" + held.size(), "?")));
        held.add(ScriptedSidecar.taken(contexts));
        if (!came.contains(token)) {
          came.add(token);
        }
        awaitRefreshed(server, came.size());
        assertEquals(came, server.refreshed);
      }
      assertFalse(held.get(0).ended());
      agent.stop(Duration.ZERO);
    }
  }

  private static void awaitRefreshed(ScriptedSidecar server, int count)
      throws InterruptedException {
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(10);
    while (server.refreshed.size() < count && System.nanoTime() < deadline) {
      Thread.sleep(5);
    }
  }

  private static String token(int seconds) {
    String claims = "{\"iat\":1000,\"exp\":" + (1000 + seconds) + "}";
    byte[] bytes = claims.getBytes(StandardCharsets.US_ASCII);
    return "h." + Base64.getUrlEncoder().withoutPadding().encodeToString(bytes) + ".s";
  }
}
