package dev.wssidecar.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.ByteString;
import java.time.Instant;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;
import org.junit.jupiter.api.Test;

/** What is acknowledged when, by hand: one thread, handlers and timers that go off when a test says so. */
class DispatcherTest {
  private final Queue<Runnable> handlers = new ArrayDeque<>();
  private final List<Waiting> timers = new ArrayList<>();
  private final List<String> begun = new ArrayList<>();
  private final List<String> acknowledged = new ArrayList<>();
  private int room;
  private final Dispatcher dispatcher =
      new Dispatcher(
          event -> begun.add(((InboundMessage) event).id()),
          handlers::add,
          () -> room++,
          acknowledged::add,
          this::wait);

  @Test
  void whatWaitsForItsOwnContextTakesNoOthersPlace() {
    receive("alice", "a-0", "a-1");
    receive("bob", "b-0");
    assertEquals(1, room);
    assertEquals(2, dispatcher.busy());
    runAll();
    assertEquals(List.of("a-0", "b-0", "a-1"), begun);
    assertEquals(3, room);
    assertEquals(0, dispatcher.busy());
  }

  @Test
  void whatWaitsStaysTheSidecarsUntilItIsBegun() {
    receive("alice", "a-0", "a-1", "a-2");
    assertEquals(List.of("a-0"), acknowledged);
    handlers.remove().run();
    assertEquals(List.of("a-0", "a-1"), acknowledged);
    assertTrue(timers.get(0).over.isCancelled());
    assertFalse(timers.get(1).over.isCancelled());
    runAll();
    timers.forEach(each -> each.call.run()); // though it was cancelled: it may have gone off by then
    assertEquals(List.of("a-0", "a-1", "a-2"), acknowledged);
  }

  @Test
  void whatWaitsForLongIsAcknowledgedBeforeAnotherWorkerIsGivenIt() {
    receive("alice", "a-0", "a-1", "a-2");
    timers.forEach(each -> each.call.run());
    assertEquals(List.of("a-0", "a-1", "a-2"), acknowledged);
    assertEquals(List.of(), givenBack());
    dispatcher.leave();
    runAll();
    assertEquals(List.of("a-0", "a-1", "a-2"), begun);
    assertEquals(begun, acknowledged);
  }

  @Test
  void whatIsGivenBackIsWhatWasNotAcknowledged() {
    receive("alice", "a-0", "a-1", "a-2", "a-3");
    receive("bob", "b-0");
    dispatcher.own("alice", "a-2");
    assertEquals(List.of("a-0", "b-0", "a-2"), acknowledged);
    assertEquals(List.of("a-1", "a-3"), givenBack());
    assertTrue(timers.stream().allMatch(each -> each.over.isCancelled()));
    timers.forEach(each -> each.call.run());
    assertEquals(List.of("a-0", "b-0", "a-2"), acknowledged);
    receive("alice", "a-1"); // it has come again
    assertEquals(List.of("a-0", "b-0", "a-2"), acknowledged);
    runAll();
    assertEquals(List.of("a-0", "b-0", "a-2", "a-1"), begun);
    assertEquals(begun, acknowledged);
  }

  @Test
  void whoLeavesAcknowledgesNothingThatIsGivenBackOrComes() {
    receive("alice", "a-0", "a-1", "a-2");
    timers.get(1).call.run();
    dispatcher.leave();
    timers.get(0).call.run();
    dispatcher.own("alice", "a-1");
    receive("alice", "a-3");
    receive("bob", "b-0");
    runAll();
    assertEquals(List.of("a-0", "a-2"), begun);
    assertEquals(begun, acknowledged);
  }

  private void receive(String isolationKey, String... ids) {
    UserContext user =
        new UserContext("", isolationKey, "", "", "", Instant.EPOCH, List.of(), Map.of());
    for (String id : ids) {
      Answering answering = new Answering(Runnable::run);
      dispatcher.receive(
          new InboundMessage(
              new AgentContext(isolationKey, user, null, null),
              id,
              "ask",
              ByteString.EMPTY,
              ContentType.TEXT,
              false,
              answering),
          id,
          answering);
    }
  }

  private List<String> givenBack() {
    return dispatcher.giveBack().stream().map(Dispatcher.Handling::deliveryId).toList();
  }

  private void runAll() {
    while (!handlers.isEmpty()) {
      handlers.remove().run();
    }
  }

  private Future<?> wait(Runnable call) {
    Waiting waiting = new Waiting(call, new CompletableFuture<>());
    timers.add(waiting);
    return waiting.over;
  }

  private record Waiting(Runnable call, CompletableFuture<Void> over) {}
}
