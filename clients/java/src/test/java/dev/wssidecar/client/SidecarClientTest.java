package dev.wssidecar.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.wssidecar.client.errors.BadRequestException;
import dev.wssidecar.client.errors.IsolationViolationException;
import dev.wssidecar.client.errors.OutboxFullException;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.TokenException;
import dev.wssidecar.client.errors.TransportException;
import dev.wssidecar.client.errors.UnavailableException;
import io.grpc.Status;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanContext;
import io.opentelemetry.api.trace.TraceFlags;
import io.opentelemetry.api.trace.TraceState;
import io.opentelemetry.context.Scope;
import java.io.IOException;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** The unary calls, against a scripted sidecar. */
@Timeout(30)
class SidecarClientTest {
  private static final Recipient ALICE = Recipient.of("key-a", "token-a").expecting("alice");

  private ScriptedSidecar sidecar;
  private SidecarClient client;

  @BeforeEach
  void open() throws IOException {
    sidecar = new ScriptedSidecar();
    client = sidecar.client().build();
  }

  @AfterEach
  void close() {
    client.close();
    sidecar.close();
  }

  @Test
  void sendsWithTheContextTokenAndWithoutTheServiceToken() {
    Receipt receipt = client.sendToUser(ALICE, Message.json("1").withEventType("news"));
    assertEquals(1, receipt.sequence());
    assertEquals(DeliveryState.WRITTEN, receipt.state());
    assertEquals("alice", sidecar.sent.get(0).getExpectedUserId());
    assertEquals("token-a", sidecar.headers.get(0).get(ScriptedSidecar.CONTEXT_TOKEN));
    assertNull(sidecar.headers.get(0).get(ScriptedSidecar.SERVICE_TOKEN));
    client.exchangeContextToken("user-token", "c-1", List.of());
    assertEquals("the-service", sidecar.headers.get(1).get(ScriptedSidecar.SERVICE_TOKEN));
    assertNull(sidecar.headers.get(1).get(ScriptedSidecar.CONTEXT_TOKEN));
  }

  @Test
  void triesAgainWithTheSameMessageIdAfterRetryInfo() {
    sidecar.failNext(ScriptedSidecar.error(Status.Code.UNAVAILABLE, "STORAGE_UNAVAILABLE", 150));
    long began = System.nanoTime();
    client.sendToUser(ALICE, Message.text("x"));
    assertTrue(System.nanoTime() - began >= TimeUnit.MILLISECONDS.toNanos(150));
    assertEquals(2, sidecar.sent.size());
    String id = sidecar.sent.get(0).getMessage().getMessageId();
    assertTrue(id.matches("[0-9a-f]{32}"), id);
    assertEquals(id, sidecar.sent.get(1).getMessage().getMessageId());
  }

  @Test
  void triesFourTimesAtMost() {
    for (int at = 0; at < 9; at++) {
      sidecar.failNext(ScriptedSidecar.error(Status.Code.UNAVAILABLE, "CLUSTER_UNAVAILABLE", 0));
    }
    SidecarException error =
        assertThrows(
            UnavailableException.class, () -> client.sendToUser(ALICE, Message.text("x")));
    assertEquals("CLUSTER_UNAVAILABLE", error.reason());
    assertEquals(4, sidecar.sent.size());
  }

  @Test
  void hasOneDeadlineOverAllTries() {
    client.sendToUser(ALICE, Message.text("connects"));
    sidecar.failNext(ScriptedSidecar.error(Status.Code.UNAVAILABLE, "DRAINING", 100));
    sidecar.answers.add((request, observer) -> {}); // no answer
    long began = System.nanoTime();
    SidecarException error =
        assertThrows(
            TransportException.class,
            () ->
                client.sendToUser(
                    ALICE,
                    Message.text("x"),
                    SendOptions.NONE.withTimeout(Duration.ofMillis(2_000))));
    long took = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - began);
    assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code());
    assertFalse(error.definite());
    assertTrue(took >= 1_990 && took < 5_000, "" + took);
  }

  @Test
  void givesTheErrorThatSaysWhyRatherThanWaitPastTheDeadline() {
    client.sendToUser(ALICE, Message.text("connects"));
    sidecar.failNext(ScriptedSidecar.error(Status.Code.UNAVAILABLE, "DRAINING", 4_500));
    SidecarException error =
        assertThrows(
            UnavailableException.class,
            () ->
                client.sendToUser(
                    ALICE,
                    Message.text("x"),
                    SendOptions.NONE.withTimeout(Duration.ofMillis(2_500))));
    assertEquals(Duration.ofMillis(4_500), error.retryAfter().orElseThrow());
    assertEquals(2, sidecar.sent.size());
  }

  @Test
  void leavesWhatIsOverALimitToItsCaller() {
    sidecar.failNext(ScriptedSidecar.error(Status.Code.RESOURCE_EXHAUSTED, "OUTBOX_FULL", 10));
    assertThrows(OutboxFullException.class, () -> client.sendToUser(ALICE, Message.text("x")));
    assertEquals(1, sidecar.sent.size());
  }

  @Test
  void repeatsNothingOfWhichASecondOneIsAnother() {
    assertThrows(UnavailableException.class, () -> client.closeManager(ALICE));
    assertEquals(1, sidecar.closes);
  }

  @Test
  void aRefusalBehindATryWithoutAnAnswerIsNotDefinite() {
    sidecar.failNext(Status.UNAVAILABLE.asRuntimeException());
    sidecar.failNext(ScriptedSidecar.error(Status.Code.PERMISSION_DENIED, "ISOLATION_VIOLATION", -1));
    SidecarException error =
        assertThrows(
            IsolationViolationException.class, () -> client.sendToUser(ALICE, Message.text("x")));
    assertFalse(error.definite());
  }

  @Test
  void refusesATokenThatGrpcCannotCarryWithoutQuotingIt() {
    for (String token : List.of("secret\nx", "sécret", " secret", "s".repeat(4_097))) {
      SidecarException error =
          assertThrows(
              TokenException.class,
              () -> client.sendToUser(Recipient.of("key", token), Message.text("x")));
      assertEquals("TOKEN_INVALID", error.reason());
      assertFalse(error.toString().contains("secret"));
    }
    assertTrue(sidecar.sent.isEmpty());
    assertFalse(ALICE.toString().contains("token-a"));
  }

  @Test
  void refusesALoneSurrogateInsteadOfSendingAQuestionMark() {
    assertThrows(BadRequestException.class, () -> Message.text("a\ud800b"));
    assertThrows(BadRequestException.class, () -> Message.json("\"\udc00\ud800\""));
    client.sendToUser(ALICE, Message.text("a\ud83d\ude00b"));
  }

  @Test
  void holdsTheDeadlineBackWhileItWaitsForAnAcknowledgement() {
    sidecar.answers.add(
        (request, observer) ->
            CompletableFuture.delayedExecutor(300, TimeUnit.MILLISECONDS)
                .execute(
                    () ->
                        observer.onError(
                            ScriptedSidecar.error(Status.Code.NOT_FOUND, "MANAGER_GONE", -1))));
    SendOptions options =
        SendOptions.waitingForAck(Duration.ofSeconds(5)).withTimeout(Duration.ofMillis(100));
    SidecarException error =
        assertThrows(
            SidecarException.class, () -> client.sendToUser(ALICE, Message.text("x"), options));
    assertEquals("MANAGER_GONE", error.reason());
    assertEquals(5, sidecar.sent.get(0).getWaitForAck().getSeconds());
  }

  @Test
  void cancellingTheFutureCancelsTheCall() throws Exception {
    CountDownLatch cancelled = new CountDownLatch(1);
    CountDownLatch asked = new CountDownLatch(1);
    sidecar.answers.add(
        (request, observer) -> {
          ((io.grpc.stub.ServerCallStreamObserver<?>) observer)
              .setOnCancelHandler(cancelled::countDown);
          asked.countDown();
        });
    CompletableFuture<Receipt> call = client.sendToUserAsync(ALICE, Message.text("x"));
    assertTrue(asked.await(10, TimeUnit.SECONDS));
    call.cancel(true);
    assertTrue(cancelled.await(10, TimeUnit.SECONDS));
  }

  @Test
  void anInterruptCancelsTheCallAndIsKept() {
    sidecar.answers.add((request, observer) -> {});
    Thread.currentThread().interrupt();
    SidecarException error =
        assertThrows(TransportException.class, () -> client.sendToUser(ALICE, Message.text("x")));
    assertTrue(Thread.interrupted());
    assertEquals(Status.Code.CANCELLED, error.code());
  }

  @Test
  void closingEndsWhatIsUnderWay() {
    sidecar.answers.add((request, observer) -> {});
    CompletableFuture<Receipt> call = client.sendToUserAsync(ALICE, Message.text("x"));
    client.close();
    Throwable error = assertThrows(Exception.class, () -> call.get(5, TimeUnit.SECONDS)).getCause();
    assertEquals(
        Status.Code.CANCELLED, assertInstanceOf(TransportException.class, error).code());
    assertThrows(IllegalStateException.class, () -> client.sendToUser(ALICE, Message.text("x")));
  }

  @Test
  void comesBackSoonAfterTheSidecarHasStarted() throws Exception {
    int port = ScriptedSidecar.freePort();
    try (SidecarClient early = sidecar.client().endpoint(ScriptedSidecar.endpoint(port)).build()) {
      Sender sender = early.withTimeout(Duration.ofSeconds(20)).sender();
      CompletableFuture<Receipt> send = sender.sendAsync(ALICE, Message.text("x"));
      Thread.sleep(3_300); // gRPC's own tries are at about 0, 1, 2.6 and 5.2 s
      try (ScriptedSidecar late = new ScriptedSidecar(port)) {
        long began = System.nanoTime();
        late.nextDeliver();
        assertTrue(System.nanoTime() - began < TimeUnit.MILLISECONDS.toNanos(1_600));
        send.cancel(true);
        sender.close(Duration.ZERO);
      }
    }
  }

  @Test
  void findsASidecarThatIsBackWithinTheTriesOfACall() throws Exception {
    int port = ScriptedSidecar.freePort();
    String endpoint = ScriptedSidecar.endpoint(port);
    try (SidecarClient early = sidecar.client().endpoint(endpoint).uniform(() -> 0.99).build()) {
      for (int call = 0; call < 5; call++) { // the pause between two attempts to connect grows meanwhile
        assertThrows(TransportException.class, () -> early.sendToUser(ALICE, Message.text("x")));
      }
      try (ScriptedSidecar back = new ScriptedSidecar(port)) {
        early.sendToUser(ALICE, Message.text("y"));
        assertEquals(1, back.sent.size());
      }
    }
  }

  @Test
  void handsTheCallersTraceOn() {
    SpanContext span =
        SpanContext.create(
            "0af7651916cd43dd8448eb211c80319c",
            "b7ad6b7169203331",
            TraceFlags.getSampled(),
            TraceState.getDefault());
    Scope scope = Span.wrap(span).makeCurrent();
    client.sendToUser(ALICE, Message.text("x"));
    scope.close();
    client.sendToUser(ALICE, Message.text("y"));
    assertEquals(
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        sidecar.headers.get(0).get(ScriptedSidecar.TRACE));
    assertNull(sidecar.headers.get(1).get(ScriptedSidecar.TRACE));
  }
}
