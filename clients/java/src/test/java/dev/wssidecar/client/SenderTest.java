package dev.wssidecar.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTimeout;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.wssidecar.client.ScriptedSidecar.Stream;
import dev.wssidecar.client.errors.BadRequestException;
import dev.wssidecar.client.errors.OutboxFullException;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.TokenException;
import dev.wssidecar.client.errors.TransportException;
import io.grpc.Status;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import sidecar.api.v1.DeliverRequest;
import sidecar.api.v1.DeliverRequest.LaneMessage;
import sidecar.api.v1.DeliverResponse;
import sidecar.api.v1.DeliveryState;

/** The sender, against a scripted sidecar. */
@Timeout(30)
class SenderTest {
  private static final Recipient ALICE = Recipient.of("key-a", "token-a").expecting("alice");
  private static final Recipient BOB = Recipient.of("key-b", "token-b");

  /** Than the 5 s that closing may take. */
  private static final Duration MUCH_SOONER = Duration.ofMillis(2_500);

  private ScriptedSidecar sidecar;
  private SidecarClient client;
  private final List<Sender> senders = new ArrayList<>();

  @BeforeEach
  void open() throws IOException {
    sidecar = new ScriptedSidecar();
    client = sidecar.client().build();
  }

  @AfterEach
  void close() {
    senders.forEach(sender -> sender.close(Duration.ZERO)); // what a test left unanswered is not waited for
    client.close();
    sidecar.close();
  }

  @Test
  void opensALaneATokenAndAnswersEachByItsNumber() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS);
    CompletableFuture<Receipt> first = sender.sendAsync(ALICE, Message.text("1"));
    Peer peer = new Peer(sidecar.nextDeliver());
    assertEquals(List.of("1"), peer.take(1));
    CompletableFuture<Receipt> second = sender.sendAsync(BOB, Message.text("2"));
    CompletableFuture<Receipt> third = sender.sendAsync(ALICE, Message.text("3"));
    assertEquals(List.of("2", "3"), peer.take(2));
    assertEquals(List.of("key-a token-a alice", "key-b token-b "), peer.opened);
    peer.accept(1, 0, 7);
    peer.accept(0, 9, 99); // no such message
    peer.accept(7, 0, 99); // no such lane
    peer.accept(0, 0, 1);
    peer.accept(0, 1, 2);
    assertEquals(7, second.get().sequence());
    assertEquals(1, first.get().sequence());
    assertEquals(2, third.get().sequence());
    assertEquals(0, sender.inFlight());
  }

  @Test
  void gathersWhatComesWhileAWriteIsUnderWay() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS);
    sender.sendAsync(ALICE, Message.text("first"));
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(1);
    for (int at = 0; at < 3_000; at++) {
      sender.sendAsync(ALICE, Message.text("" + at));
    }
    List<String> texts = peer.take(3_000);
    for (int at = 0; at < 3_000; at++) {
      assertEquals("" + at, texts.get(at));
    }
    assertTrue(peer.frames < 1_500, peer.frames + " frames");
    assertTrue(peer.largest <= 1_000, peer.largest + " in one");
  }

  @Test
  void aBrokenStreamIsOpenedAgainAndWhatHadNoAnswerGoesFirstInOrder() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS);
    List<CompletableFuture<Receipt>> sends = new ArrayList<>();
    for (int at = 0; at < 4; at++) {
      sends.add(sender.sendAsync(at % 2 == 0 ? ALICE : BOB, Message.text("" + at)));
    }
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(4);
    peer.accept(0, 0, 1);
    sends.get(0).get();
    peer.stream.fail(Status.UNAVAILABLE.asRuntimeException());
    Peer again = new Peer(sidecar.nextDeliver());
    sends.add(sender.sendAsync(ALICE, Message.text("4")));
    assertEquals(List.of("1", "2", "3", "4"), again.take(4));
    assertEquals(peer.ids.subList(1, 4), again.ids.subList(0, 3));
    again.accept(0, 0, 5);
    assertEquals(5, sends.get(1).get().sequence());
  }

  @Test
  void aStreamThatIsRefusedForGoodFailsWhatWasWritten() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS);
    CompletableFuture<Receipt> send = sender.sendAsync(ALICE, Message.text("x"));
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(1);
    peer.stream.fail(ScriptedSidecar.error(Status.Code.UNAUTHENTICATED, "TOKEN_MISSING", -1));
    assertInstanceOf(TokenException.class, failure(send));
  }

  @Test
  void aRefusalFailsThatMessageAloneAndIsNotRepeated() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS);
    CompletableFuture<Receipt> full = sender.sendAsync(ALICE, Message.text("1"));
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(1);
    CompletableFuture<Receipt> good = sender.sendAsync(ALICE, Message.text("2"));
    peer.take(1);
    peer.refuse(0, 0, Status.Code.RESOURCE_EXHAUSTED, "OUTBOX_FULL");
    peer.accept(0, 1, 1);
    OutboxFullException error = assertInstanceOf(OutboxFullException.class, failure(full));
    assertTrue(error.definite());
    assertEquals(1, good.get().sequence());
    assertTrue(peer.stream.frames.isEmpty());
  }

  @Test
  void aLaneErrorAnswersWhatIsToldThatTheLaneIsNotOpen() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS);
    CompletableFuture<Receipt> send = sender.sendAsync(ALICE, Message.text("1"));
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(1);
    peer.stream.say(
        DeliverResponse.newBuilder()
            .setLaneError(
                DeliverResponse.LaneError.newBuilder()
                    .setLane(0)
                    .setError(
                        ScriptedSidecar.refusal(
                            Status.Code.UNAUTHENTICATED, "TOKEN_EXPIRED", -1)))
            .build());
    peer.refuse(0, 0, Status.Code.FAILED_PRECONDITION, "LANE_NOT_OPEN");
    assertEquals("TOKEN_EXPIRED", ((SidecarException) failure(send)).reason());
    sender.sendAsync(ALICE, Message.text("2"));
    assertEquals(List.of("2"), peer.take(1));
    assertEquals(2, peer.opened.size()); // another lane, by the same token
  }

  @Test
  void waitsForRoomAndAnInterruptEndsTheWait() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS.withMaxInFlight(2));
    sender.sendAsync(ALICE, Message.text("1"));
    sender.sendAsync(ALICE, Message.text("2"));
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(2);
    AtomicReference<CompletableFuture<Receipt>> third = new AtomicReference<>();
    Thread waiting = new Thread(() -> third.set(sender.sendAsync(ALICE, Message.text("3"))));
    waiting.start();
    awaitState(waiting, Thread.State.TIMED_WAITING);
    waiting.interrupt();
    waiting.join();
    TransportException error = (TransportException) failure(third.get());
    assertEquals(Status.Code.CANCELLED, error.code());
    Thread another = new Thread(() -> third.set(sender.sendAsync(ALICE, Message.text("4"))));
    another.start();
    awaitState(another, Thread.State.TIMED_WAITING);
    peer.accept(0, 0, 1);
    another.join();
    assertEquals(List.of("4"), peer.take(1));
    assertEquals(2, sender.inFlight());
  }

  @Test
  void aFullSenderDoesNotWaitInACallbackOfItsOwn() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS.withMaxInFlight(1));
    CompletableFuture<Void> both =
        sender
            .sendAsync(ALICE, Message.text("1"))
            .thenRun(
                () -> {
                  sender.sendAsync(ALICE, Message.text("2"));
                  sender.sendAsync(ALICE, Message.text("3"));
                });
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(1);
    peer.accept(0, 0, 1);
    both.get(5, TimeUnit.SECONDS);
    assertEquals(List.of("2", "3"), peer.take(2));
  }

  @Test
  void aDeadlineThatPassesIsNotDefiniteAndKeepsItsPlaceUntilAnswered() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS);
    CompletableFuture<Receipt> first = sender.sendAsync(ALICE, Message.text("connects"));
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(1);
    peer.accept(0, 0, 1);
    first.get();
    CompletableFuture<Receipt> slow =
        sender.sendAsync(
            ALICE, Message.text("1"), SendOptions.NONE.withTimeout(Duration.ofSeconds(1)));
    peer.take(1);
    TransportException error = (TransportException) failure(slow);
    assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code());
    assertFalse(error.definite());
    assertEquals(1, sender.inFlight());
    CompletableFuture<Receipt> next = sender.sendAsync(ALICE, Message.text("2"));
    peer.take(1);
    peer.accept(0, 1, 2);
    peer.accept(0, 2, 3);
    assertEquals(3, next.get().sequence());
    assertEquals(0, sender.inFlight());
  }

  @Test
  void whatIsNotWrittenByItsDeadlineIsNeverSent() throws Exception {
    int port = ScriptedSidecar.freePort();
    client.close();
    client = sidecar.client().endpoint(ScriptedSidecar.endpoint(port)).build();
    Sender sender = sender(SenderLimits.DEFAULTS);
    CompletableFuture<Receipt> late =
        sender.sendAsync(
            ALICE, Message.text("late"), SendOptions.NONE.withTimeout(Duration.ofMillis(200)));
    CompletableFuture<Receipt> cancelled = sender.sendAsync(ALICE, Message.text("cancelled"));
    cancelled.cancel(true);
    failure(late);
    assertEquals(0, sender.inFlight());
    sender.sendAsync(ALICE, Message.text("in time"));
    sidecar.close();
    sidecar = new ScriptedSidecar(port);
    assertEquals(List.of("in time"), new Peer(sidecar.nextDeliver()).take(1));
  }

  @Test
  void waitsForTheClientsAcknowledgement() throws Exception {
    Sender sender = kept(client.senderBuilder().reportAcknowledged().build());
    SendOptions wait = SendOptions.waitingForAck(Duration.ofSeconds(10));
    CompletableFuture<Receipt> read = sender.sendAsync(ALICE, Message.text("1"), wait);
    CompletableFuture<Receipt> lost = sender.sendAsync(ALICE, Message.text("2"), wait);
    CompletableFuture<Receipt> unread =
        sender.sendAsync(
            ALICE, Message.text("3"), SendOptions.waitingForAck(Duration.ofMillis(300)));
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(3);
    peer.accept(0, 0, 11);
    peer.accept(0, 1, 12);
    peer.accept(0, 2, 13);
    peer.stream.say(
        DeliverResponse.newBuilder()
            .setAcknowledged(DeliverResponse.Acknowledged.newBuilder().setLane(0).setSequence(11))
            .build());
    assertEquals(dev.wssidecar.client.DeliveryState.ACKNOWLEDGED, read.get().state());
    peer.stream.say(
        DeliverResponse.newBuilder()
            .setDropped(DeliverResponse.Dropped.newBuilder().setLane(0).setFrom(12).setTo(12))
            .build());
    assertEquals(dev.wssidecar.client.DeliveryState.DROPPED, lost.get().state());
    assertEquals(dev.wssidecar.client.DeliveryState.WRITTEN, unread.get().state());
    assertEquals(0, sender.inFlight());
    assertThrows(
        IllegalArgumentException.class,
        () -> sender(SenderLimits.DEFAULTS).sendAsync(ALICE, Message.text("x"), wait));
  }

  @Test
  void anIdleLaneGivesWayToAnotherToken() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS.withMaxLanes(1));
    CompletableFuture<Receipt> first = sender.sendAsync(ALICE, Message.text("1"));
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(1);
    CompletableFuture<Receipt> second = sender.sendAsync(BOB, Message.text("2"));
    assertFalse(second.isDone());
    peer.accept(0, 0, 1);
    first.get();
    assertEquals(List.of("2"), peer.take(1));
    assertEquals(List.of(0), peer.closed);
    peer.accept(1, 0, 9);
    assertEquals(9, second.get().sequence());
  }

  @Test
  void tellsOfAStreamThatTheClientCancelled() throws Exception {
    CompletableFuture<StreamCancellation> told = new CompletableFuture<>();
    Sender sender = kept(client.senderBuilder().onStreamCancelled(told::complete).build());
    sender.sendAsync(ALICE, Message.text("1"));
    Peer peer = new Peer(sidecar.nextDeliver());
    peer.take(1);
    peer.stream.say(
        DeliverResponse.newBuilder()
            .setStreamCancelled(
                DeliverResponse.StreamCancelled.newBuilder().setLane(0).setStreamId("s"))
            .build());
    assertEquals(new StreamCancellation("key-a", "s", ""), told.get(5, TimeUnit.SECONDS));
  }

  @Test
  void refusesHereWhatAFrameCannotCarry() {
    Sender sender = sender(SenderLimits.DEFAULTS);
    assertThrows(
        BadRequestException.class,
        () -> sender.send(ALICE, Message.binary(new byte[4 * 1_048_576])));
    assertThrows(
        TokenException.class, () -> sender.send(Recipient.of("key", "a\nb"), Message.text("x")));
    assertEquals(0, sender.inFlight());
  }

  @Test
  void closingWritesWhatIsQueuedAndHalfCloses() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS);
    CompletableFuture<Receipt> send = sender.sendAsync(ALICE, Message.text("1"));
    Peer peer = new Peer(sidecar.nextDeliver());
    CountDownLatch over = new CountDownLatch(1);
    new Thread(
            () -> {
              sender.close();
              over.countDown();
            })
        .start();
    peer.take(1);
    assertEquals("half-closed", ScriptedSidecar.taken(peer.stream.ends));
    peer.accept(0, 0, 1);
    peer.stream.complete();
    assertTrue(over.await(5, TimeUnit.SECONDS));
    assertEquals(1, send.get().sequence());
    assertThrows(IllegalStateException.class, () -> sender.sendAsync(ALICE, Message.text("2")));
  }

  @Test
  void closingFailsWhatHasNoAnswerInTime() throws Exception {
    Sender sender = sender(SenderLimits.DEFAULTS);
    CompletableFuture<Receipt> send = sender.sendAsync(ALICE, Message.text("1"));
    new Peer(sidecar.nextDeliver()).take(1);
    sender.close(Duration.ofMillis(100));
    assertEquals(Status.Code.CANCELLED, ((TransportException) failure(send)).code());
  }

  @Test
  void closingWithNothingToDoTakesNoTimeWhileNobodyIsThere() {
    sidecar.close();
    for (int i = 0; i < 3; i++) {
      Sender sender = client.sender();
      SendOptions soon = SendOptions.NONE.withTimeout(Duration.ofMillis(50));
      assertThrows(TransportException.class, () -> sender.send(ALICE, Message.text("1"), soon));
    }
    assertTimeout(MUCH_SOONER, client::close);
  }

  @Test
  void closingWithNothingToDoDoesNotWaitForAStreamThatDoesNotEnd() throws Exception {
    for (int i = 0; i < 3; i++) { // side by side
      CompletableFuture<Receipt> send = client.sender().sendAsync(ALICE, Message.text("1"));
      Peer peer = new Peer(sidecar.nextDeliver());
      peer.take(1);
      peer.accept(0, 0, 1);
      send.get();
    }
    assertTimeout(MUCH_SOONER, client::close);
  }

  @Test
  void closingEndsWithTheDeadlineOfTheLastMessage() {
    sidecar.close();
    Sender sender = client.sender();
    SendOptions soon = SendOptions.NONE.withTimeout(Duration.ofMillis(300));
    CompletableFuture<Receipt> send = sender.sendAsync(ALICE, Message.text("1"), soon);
    assertTimeout(MUCH_SOONER, () -> sender.close());
    assertEquals(
        Status.Code.DEADLINE_EXCEEDED, ((TransportException) failure(send)).code());
  }

  @Test
  void theSendersOfAClientCloseSideBySide() {
    sidecar.close();
    List<CompletableFuture<Receipt>> sends = new ArrayList<>();
    SendOptions late = SendOptions.NONE.withTimeout(Duration.ofMinutes(1));
    for (int i = 0; i < 3; i++) {
      sends.add(client.sender().sendAsync(ALICE, Message.text("1"), late));
    }
    assertTimeout(Duration.ofSeconds(7), client::close);
    for (CompletableFuture<Receipt> send : sends) {
      assertEquals(Status.Code.CANCELLED, ((TransportException) failure(send)).code());
    }
  }

  private Sender sender(SenderLimits limits) {
    return kept(client.senderBuilder().limits(limits).build());
  }

  private Sender kept(Sender sender) {
    senders.add(sender);
    return sender;
  }

  private static Throwable failure(CompletableFuture<?> future) {
    return assertThrows(ExecutionException.class, () -> future.get(10, TimeUnit.SECONDS))
        .getCause();
  }

  private static void awaitState(Thread thread, Thread.State state) throws InterruptedException {
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(10);
    while (thread.getState() != state && System.nanoTime() < deadline) {
      Thread.sleep(1);
    }
    assertEquals(state, thread.getState());
  }

  /** The other end of one Deliver stream. */
  private static final class Peer {
    private final Stream<DeliverRequest, DeliverResponse> stream;
    private final List<String> opened = new ArrayList<>();
    private final List<Integer> closed = new ArrayList<>();
    private final List<String> ids = new ArrayList<>();
    private int frames;
    private int largest;

    private Peer(Stream<DeliverRequest, DeliverResponse> stream) {
      this.stream = stream;
    }

    /** The texts of the next messages. */
    private List<String> take(int count) throws InterruptedException {
      List<String> texts = new ArrayList<>();
      while (texts.size() < count) {
        DeliverRequest frame = stream.next();
        switch (frame.getFrameCase()) {
          case OPEN_LANE -> {
            DeliverRequest.OpenLane lane = frame.getOpenLane();
            opened.add(
                String.join(
                    " ",
                    lane.getIsolationKey(),
                    lane.getContextToken(),
                    lane.getExpectedUserId()));
          }
          case CLOSE_LANE -> closed.add(frame.getCloseLane().getLane());
          default -> {
            frames++;
            largest = Math.max(largest, frame.getMessages().getItemsCount());
            for (LaneMessage item : frame.getMessages().getItemsList()) {
              texts.add(item.getMessage().getPayload().toStringUtf8());
              ids.add(item.getMessage().getMessageId());
            }
          }
        }
      }
      return texts;
    }

    private void accept(int lane, long number, long sequence) {
      answer(
          DeliverResponse.LaneReceipt.newBuilder()
              .setLane(lane)
              .setNumber(number)
              .setReceipt(
                  ScriptedSidecar.receipt("m", sequence, DeliveryState.DELIVERY_STATE_WRITTEN)));
    }

    private void refuse(int lane, long number, Status.Code code, String reason) {
      answer(
          DeliverResponse.LaneReceipt.newBuilder()
              .setLane(lane)
              .setNumber(number)
              .setError(ScriptedSidecar.refusal(code, reason, -1)));
    }

    private void answer(DeliverResponse.LaneReceipt.Builder item) {
      stream.say(
          DeliverResponse.newBuilder()
              .setReceipts(DeliverResponse.Receipts.newBuilder().addItems(item))
              .build());
    }
  }
}
