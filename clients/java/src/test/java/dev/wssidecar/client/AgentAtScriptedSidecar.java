package dev.wssidecar.client;

import java.io.IOException;
import java.time.Duration;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;

/** What the tests of an agent have in common: a scripted sidecar, a client of it, and one agent that is stopped. */
abstract class AgentAtScriptedSidecar {
  final BlockingQueue<String> seen = new LinkedBlockingQueue<>();
  final CountDownLatch go = new CountDownLatch(1);
  ScriptedSidecar server;
  SidecarClient client;
  Agent agent;

  @BeforeEach
  void open() throws IOException {
    server = new ScriptedSidecar();
    client = server.client().build();
  }

  @AfterEach
  void close() {
    go.countDown();
    server.close(); // first: what it left unanswered is not waited for
    agent.stop(Duration.ZERO);
    client.close();
  }

  final Agent.Builder builder() {
    return Agent.builder("answers").client(client);
  }

  final Attached start(Agent.Builder builder) throws Exception {
    agent = builder.build().start();
    Attached attached = new Attached(server.nextAttach());
    attached.register();
    agent.waitAttached(Duration.ofSeconds(5));
    return attached;
  }

  final String take() throws InterruptedException {
    return ScriptedSidecar.taken(seen);
  }
}
