package dev.wssidecar.client;

import static dev.wssidecar.client.Attached.event;
import static dev.wssidecar.client.Attached.inbound;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.wssidecar.client.errors.StreamCancelledException;
import dev.wssidecar.client.errors.SubscriptionTakenException;
import io.grpc.Status;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import sidecar.api.v1.AttachResponse;

/** The agent, against a scripted sidecar. */
@Timeout(30)
class AgentTest extends AgentAtScriptedSidecar {
  @Test
  void registersAndSaysMineOfEachEventAndGivesItsCreditBack() throws Exception {
    Attached attached =
        start(builder().credits(2).onMessage("ask", (context, message) -> seen.add(message.text())));
    assertEquals("answers", attached.registration.getServiceName());
    assertEquals("ask", attached.registration.getSubscriptions(0).getEvent());
    assertEquals(2, attached.registration.getCredits());
    assertEquals("the-service", server.headers.get(0).get(ScriptedSidecar.SERVICE_TOKEN));
    attached.message("d1", "key-a", "m1", "hello");
    assertEquals("hello", take());
    assertEquals("d1", attached.nextAcknowledged());
    assertEquals(1, attached.nextCredit());
  }

  @Test
  void handlesAContextInOrderAndOthersBesideIt() throws Exception {
    Attached attached =
        start(
            builder()
                .onMessage(
                    (context, message) -> {
                      seen.add(message.text());
                      if (message.text().equals("a1")) {
                        go.await();
                      }
                    }));
    attached.message("1", "key-a", "m1", "a1");
    attached.message("2", "key-a", "m2", "a2");
    assertEquals("a1", take());
    attached.message("3", "key-b", "m1", "b1");
    assertEquals("b1", take());
    go.countDown();
    assertEquals("a2", take());
  }

  @Test
  void takesTheEventsOfOneFrameInTheirOrder() throws Exception {
    Attached attached =
        start(builder().onMessage((context, message) -> seen.add(message.text())));
    assertEquals(AgentStream.MAX_FRAME_EVENTS, attached.registration.getMaxFrameEvents());
    AttachResponse.Events.Builder events = AttachResponse.Events.newBuilder();
    for (String id : List.of("1", "2", "3")) {
      events.addItems(event(id, "key-a").setMessage(inbound("m" + id, "a" + id)));
    }
    attached.stream.say(AttachResponse.newBuilder().setEvents(events).build());
    attached.message("4", "key-a", "m4", "a4");
    for (String id : List.of("1", "2", "3", "4")) {
      assertEquals("a" + id, take());
      assertEquals(id, attached.nextAcknowledged());
    }
  }

  @Test
  void handlesOnceWhatComesAgain() throws Exception {
    Attached attached =
        start(builder().onMessage((context, message) -> seen.add(message.text())));
    attached.message("1", "key-a", "m1", "first");
    attached.message("1", "key-a", "m1", "again");
    attached.say(event("2", "key-a").setRedelivered(true).setMessage(inbound("m1", "restarted")));
    attached.message("3", "key-a", "m2", "next");
    assertEquals("first", take());
    assertEquals("next", take());
    for (String id : List.of("1", "1", "2", "3")) {
      assertEquals(id, attached.nextAcknowledged());
    }
  }

  @Test
  void oneContextIsOneObjectWithTheNewestToken() throws Exception {
    BlockingQueue<AgentContext> contexts = new LinkedBlockingQueue<>();
    Attached attached =
        start(builder().onOpened(contexts::add).onAway(contexts::add).onBack(contexts::add));
    attached.say(event("1", "key-a").setOpened(AttachResponse.Opened.getDefaultInstance()));
    AgentContext first = ScriptedSidecar.taken(contexts);
    assertEquals("alice", first.user().userId());
    attached.say(
        event("2", "key-a").setContextToken("newer").setAway(AttachResponse.Away.getDefaultInstance()));
    assertSame(first, ScriptedSidecar.taken(contexts));
    assertEquals("newer", first.contextToken());
    attached.say(event("3", "key-b").setBack(AttachResponse.Back.getDefaultInstance()));
    assertNotSame(first, ScriptedSidecar.taken(contexts));
    assertFalse(first.toString().contains("newer"));
  }

  @Test
  void aReplyEndsWithItsHandler() throws Exception {
    Attached attached =
        start(
            builder()
                .onMessage(
                    (context, message) -> {
                      ReplyStream stream = message.reply("word");
                      stream.sendText("one");
                      stream.sendJson("2");
                    }));
    attached.message("1", "key-a", "m1", "?");
    Chunks chunks = new Chunks(server.nextDeliver());
    assertEquals("0 OPEN one word m1", chunks.next());
    chunks.accept();
    assertEquals("1 OPEN 2 word m1", chunks.next());
    chunks.accept();
    assertEquals("2 END  word m1", chunks.next());
    chunks.accept();
    attached.nextCredit();
  }

  @Test
  void aReplyFailsWithItsHandlerAndTheAgentGoesOn() throws Exception {
    Attached attached =
        start(
            builder()
                .onMessage(
                    (context, message) -> {
                      if (message.text().equals("bad")) {
                        message.reply().sendText("one");
                        throw new IllegalStateException("a handler's own failure");
                      }
                      seen.add(message.text());
                    }));
    attached.message("1", "key-a", "m1", "bad");
    attached.message("2", "key-a", "m2", "good");
    Chunks chunks = new Chunks(server.nextDeliver());
    chunks.next();
    chunks.accept();
    assertEquals("1 ERROR   m1", chunks.next());
    chunks.accept();
    assertEquals("good", take());
  }

  @Test
  void aChunkOfUnknownFateIsSentAgainUnderItsOwnIndexFirst() throws Exception {
    Attached attached =
        start(
            builder()
                .onMessage(
                    (context, message) -> {
                      ReplyStream stream =
                          message.reply(
                              ReplyOptions.DEFAULTS.withChunkTimeout(Duration.ofMillis(1_500)));
                      context.send(Message.text("connects"));
                      stream.sendText("one");
                      try {
                        stream.sendText("two");
                      } catch (RuntimeException late) {
                        seen.add("late");
                      }
                      stream.sendText("three");
                      seen.add("done");
                    }));
    attached.message("1", "key-a", "m1", "?");
    Chunks chunks = new Chunks(server.nextDeliver());
    assertEquals("0 UNSPECIFIED connects  ", chunks.next());
    chunks.accept();
    chunks.next();
    chunks.accept();
    assertEquals("1 OPEN two  m1", chunks.next()); // and no answer
    assertEquals("late", take());
    assertEquals("1 OPEN two  m1", chunks.next());
    chunks.accept(2);
    chunks.accept(3);
    assertEquals("2 OPEN three  m1", chunks.next());
    chunks.accept();
    assertEquals("done", take());
  }

  @Test
  void aSlowClientIsWaitedFor() throws Exception {
    Attached attached =
        start(builder().onMessage((context, message) -> message.reply().sendText("one")));
    attached.message("1", "key-a", "m1", "?");
    Chunks chunks = new Chunks(server.nextDeliver());
    chunks.next();
    chunks.refuse(ScriptedSidecar.refusal(Status.Code.RESOURCE_EXHAUSTED, "OUTBOX_FULL", 20));
    assertEquals("0 OPEN one  m1", chunks.next());
    chunks.accept();
    assertEquals("1 END   m1", chunks.next());
    chunks.accept();
  }

  @Test
  void cancelInterruptsTheHandlerAloneAndCompletesTheFuture() throws Exception {
    CompletableFuture<String> hung = new CompletableFuture<>();
    Attached attached =
        start(
            builder()
                .onMessage(
                    (context, message) -> {
                      message.cancelled().thenRun(() -> hung.complete("told"));
                      seen.add("begun " + message.text());
                      try {
                        go.await();
                        seen.add("went on " + message.text());
                      } catch (InterruptedException cancelled) {
                        seen.add("interrupted " + message.text() + " " + message.isCancelled());
                        throw cancelled;
                      }
                    }));
    attached.message("1", "key-a", "m1", "a");
    assertEquals("begun a", take());
    attached.message("2", "key-b", "m1", "b");
    assertEquals("begun b", take());
    attached.cancel("key-a", "m1");
    assertEquals("interrupted a true", take());
    assertEquals("told", hung.get(5, TimeUnit.SECONDS));
    go.countDown();
    assertEquals("went on b", take());
    attached.message("3", "key-a", "m2", "next");
    assertEquals("begun next", take());
    assertEquals("went on next", take());
  }

  @Test
  void cancelTakesTheInterruptsPlaceInASendAndTheHandlerMaySayALastWord() throws Exception {
    Attached attached =
        start(
            builder()
                .onMessage(
                    (context, message) -> {
                      ReplyStream stream = message.reply();
                      try {
                        stream.sendText("one");
                      } catch (StreamCancelledException wantsNoMore) {
                        seen.add("interrupted: " + Thread.currentThread().isInterrupted());
                        context.send(Message.text("stopped"));
                      }
                    }));
    attached.message("1", "key-a", "m1", "?");
    Chunks chunks = new Chunks(server.nextDeliver());
    chunks.next();
    attached.cancel("key-a", "m1");
    assertEquals("interrupted: false", take());
    assertEquals("0 UNSPECIFIED stopped  ", chunks.next());
  }

  @Test
  void aMessageThatWasCancelledBeforeItCameIsNotHandled() throws Exception {
    Attached attached =
        start(builder().onMessage((context, message) -> seen.add(message.text())));
    attached.cancel("key-a", "m1");
    attached.message("1", "key-a", "m1", "cancelled");
    attached.message("2", "key-a", "m2", "wanted");
    assertEquals("wanted", take());
    assertEquals("1", attached.nextAcknowledged());
  }

  @Test
  void attachesAgainWithTheCreditsThatAreLeft() throws Exception {
    Attached attached =
        start(
            builder()
                .credits(5)
                .onMessage(
                    (context, message) -> {
                      seen.add(message.text());
                      go.await();
                    }));
    attached.message("1", "key-a", "m1", "a");
    take();
    attached.stream.fail(Status.UNAVAILABLE.asRuntimeException());
    Attached again = new Attached(server.nextAttach());
    assertEquals(4, again.registration.getCredits());
    again.register();
    again.message("1", "key-a", "m1", "a, redelivered");
    assertEquals("1", again.nextAcknowledged());
    go.countDown();
    assertEquals(1, again.nextCredit());
    assertTrue(seen.isEmpty());
  }

  @Test
  void aRefusalEndsIt() throws Exception {
    agent = builder().onMessage((context, message) -> {}).build();
    CompletableFuture<Throwable> ended = new CompletableFuture<>();
    new Thread(
            () -> {
              try {
                agent.run();
              } catch (Exception error) {
                ended.complete(error);
              }
            })
        .start();
    server
        .nextAttach()
        .fail(ScriptedSidecar.error(Status.Code.ALREADY_EXISTS, "SUBSCRIPTION_TAKEN", -1));
    assertEquals(
        SubscriptionTakenException.class, ended.get(10, TimeUnit.SECONDS).getClass());
    assertThrows(SubscriptionTakenException.class, () -> agent.waitAttached(Duration.ofSeconds(1)));
  }

  @Test
  void refreshesATokenBeforeItEnds() throws Exception {
    BlockingQueue<AgentContext> contexts = new LinkedBlockingQueue<>();
    Attached attached = start(builder().onOpened(contexts::add));
    String token = token(1);
    attached.say(
        event("1", "key-a")
            .setContextToken(token)
            .setOpened(AttachResponse.Opened.getDefaultInstance()));
    AgentContext context = ScriptedSidecar.taken(contexts);
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(5);
    while (!context.contextToken().equals("renewed-1") && System.nanoTime() < deadline) {
      Thread.sleep(5);
    }
    assertEquals("renewed-1", context.contextToken());
    assertEquals(List.of(token), server.refreshed);
  }

  @Test
  void aClosedContextHasEndedAndItsAnswerIsStopped() throws Exception {
    BlockingQueue<String> ends = new LinkedBlockingQueue<>();
    Attached attached =
        start(
            builder()
                .onClosed((context, closed) -> ends.add(closed.reason() + " " + context.ended()))
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
    attached.say(
        event("2", "key-a")
            .setContextToken("")
            .setClosed(AttachResponse.Closed.newBuilder().setCode(4505).setReason("why")));
    assertEquals("why true", ScriptedSidecar.taken(ends));
  }

  private static String token(int seconds) {
    String claims = "{\"iat\":1000,\"exp\":" + (1000 + seconds) + "}";
    byte[] bytes = claims.getBytes(StandardCharsets.US_ASCII);
    return "h." + Base64.getUrlEncoder().withoutPadding().encodeToString(bytes) + ".s";
  }
}
