package dev.wssidecar.client;

import static dev.wssidecar.client.Attached.event;
import static dev.wssidecar.client.Attached.inbound;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What an agent ends, and what it leaves to others, when it stops or is cut off; against a scripted sidecar. */
@Timeout(30)
class AgentStopTest extends AgentAtScriptedSidecar {
  @Test
  void stopLeavesBeforeItsHandlersEndAndBeginsNothingThatWaited() throws Exception {
    Attached attached =
        start(
            builder()
                .onMessage(
                    (context, message) -> {
                      if (message.text().equals("0")) {
                        message.reply().sendText("one");
                        go.await();
                      }
                      seen.add(message.text());
                    }));
    threeMessages(attached);
    assertEquals("0", attached.nextAcknowledged());
    Chunks chunks = new Chunks(server.nextDeliver());
    assertEquals("0 OPEN one  m0", chunks.next());
    chunks.accept();
    CompletableFuture<Void> stopping = stopInOrder();
    assertEquals("half-closed", ScriptedSidecar.taken(attached.stream.ends));
    attached.stream.fail(Status.UNAVAILABLE.asRuntimeException());
    assertTrue(seen.isEmpty());
    go.countDown();
    assertEquals("1 END   m0", chunks.next());
    chunks.accept();
    assertEquals("0", take());
    assertEquals("half-closed", ScriptedSidecar.taken(chunks.stream.ends));
    chunks.stream.complete();
    stopping.get(10, TimeUnit.SECONDS);
    assertTrue(seen.isEmpty()); // what was not acknowledged is another's
    assertEquals(List.of(), attached.acknowledgedByNow());
    assertTrue(server.attaches.isEmpty()); // it did not attach again
  }

  @Test
  void whatHasWaitedForHalfOfItsAckTimeoutIsAcknowledgedAndBegunThoughItStops() throws Exception {
    Attached attached = startHolding(builder().ackTimeout(Duration.ofMillis(200)));
    threeMessages(attached);
    for (String id : List.of("0", "1", "2")) {
      assertEquals(id, attached.nextAcknowledged());
    }
    assertEquals("0", take());
    assertEndsWith(attached, "1", "2");
  }

  @Test
  void whatWaitsAndComesAgainIsAcknowledgedAndBegunThoughItStops() throws Exception {
    Attached attached = startHolding(builder());
    threeMessages(attached);
    attached.say(event("1", "key-a").setRedelivered(true).setMessage(inbound("m1", "again")));
    for (String id : List.of("0", "1")) {
      assertEquals(id, attached.nextAcknowledged());
    }
    assertEquals("0", take());
    assertEndsWith(attached, "1");
  }

  /** Another worker may have it by then. */
  @Test
  void whatWaitsWhenTheCallBreaksIsNotBegunUnlessItComesAgain() throws Exception {
    Attached attached = startHolding(builder());
    threeMessages(attached);
    assertEquals("0", attached.nextAcknowledged());
    assertEquals("0", take());
    attached.stream.fail(Status.UNAVAILABLE.asRuntimeException());
    Attached again = new Attached(server.nextAttach());
    again.register();
    again.say(event("2", "key-a").setRedelivered(true).setMessage(inbound("m2", "2")));
    assertEquals(1, again.nextCredit()); // it waits
    assertEquals(List.of(), again.acknowledgedByNow());
    go.countDown();
    assertEquals("2", take());
    assertEquals("2", again.nextAcknowledged());
    assertEndsWith(again);
    assertEquals(List.of(), again.acknowledgedByNow());
  }

  @Test
  void stopLetsHandlersEndThenInterruptsAndFailsTheirStreams() throws Exception {
    Attached attached =
        start(
            builder()
                .onMessage(
                    (context, message) -> {
                      message.reply().sendText("one");
                      seen.add("sent");
                      new CountDownLatch(1).await();
                    }));
    attached.message("1", "key-a", "m1", "?");
    Chunks chunks = new Chunks(server.nextDeliver());
    chunks.next();
    chunks.accept();
    assertEquals("sent", take());
    CompletableFuture<Void> stopping =
        CompletableFuture.runAsync(() -> agent.stop(Duration.ofMillis(100)));
    assertEquals("half-closed", ScriptedSidecar.taken(attached.stream.ends));
    attached.stream.complete();
    assertEquals("1 ERROR   m1", chunks.next());
    chunks.accept();
    assertEquals("half-closed", ScriptedSidecar.taken(chunks.stream.ends));
    chunks.stream.complete();
    stopping.get(10, TimeUnit.SECONDS);
  }

  /** One whose handler of the first message goes on when it is let go. */
  private Attached startHolding(Agent.Builder builder) throws Exception {
    return start(
        builder.onMessage(
            (context, message) -> {
              seen.add(message.text());
              if (message.text().equals("0")) {
                go.await();
              }
            }));
  }

  /** Of one context; returns when all have come, and two of them wait. */
  private static void threeMessages(Attached attached) throws InterruptedException {
    for (int each = 0; each < 3; each++) {
      attached.message("" + each, "key-a", "m" + each, "" + each);
    }
    for (int credit = 0; credit < 2; ) {
      credit += attached.nextCredit();
    }
  }

  private CompletableFuture<Void> stopInOrder() {
    return CompletableFuture.runAsync(() -> agent.stop(Duration.ofMinutes(10)));
  }

  /** It stops, lets go of the first handler when it has left, and begins these and no more. */
  private void assertEndsWith(Attached attached, String... begun) throws Exception {
    CompletableFuture<Void> stopping = stopInOrder();
    assertEquals("half-closed", ScriptedSidecar.taken(attached.stream.ends));
    attached.stream.complete();
    assertTrue(seen.isEmpty());
    go.countDown();
    stopping.get(10, TimeUnit.SECONDS);
    assertEquals(List.of(begun), List.copyOf(seen));
  }
}
