package dev.wssidecar.client;

import dev.wssidecar.client.errors.InternalException;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.TransportException;
import io.grpc.Status;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import sidecar.api.v1.AttachRequest;
import sidecar.api.v1.AttachResponse;

/** What an agent does while it runs: attach, again after every break; take events in; stop in order. Started once. */
final class AgentLoop implements AgentStream.Events {
  private static final Duration BASE = Duration.ofMillis(100);
  private static final Duration CAP = Duration.ofSeconds(10);
  private static final Duration HALF_CLOSE_TIMEOUT = Duration.ofSeconds(5);

  /** The sidecar's. */
  private static final Duration DEFAULT_ACK_TIMEOUT = Duration.ofSeconds(60);

  /** A half of that time: so long an event that waits for its handler is another worker's, should this one be lost. */
  private static final int PATIENCE_DIVISOR = 2;

  /** An attachment that lived so long was a success: the back-off begins again. */
  private static final long STABLE_NANOS = Duration.ofSeconds(5).toNanos();

  private static final Logger LOG = System.getLogger("dev.wssidecar.client");

  private final SidecarClient client;
  private final Sender sender;
  private final AttachRequest.Register registration;
  private final int credits;
  private final Executor executor;
  private final BackOff backOff;
  private final AgentMemory memory = new AgentMemory(AgentMemory.MAX_REMEMBERED);
  private final Contexts contexts = new Contexts();
  private final Dispatcher dispatcher;
  private final TokenRefresh refresh;

  /** Done when no further event will be handled; failed by what the sidecar refused for good. */
  private final CompletableFuture<Void> over = new CompletableFuture<>();

  /** Done when the call that a stop has left is over. */
  private final CompletableFuture<Void> detached = new CompletableFuture<>();

  private final CompletableFuture<Void> firstAttached = new CompletableFuture<>();

  // Guarded by this
  private AgentStream stream;
  private boolean attached;
  private boolean stopping;
  private long began;
  private int inHand;

  AgentLoop(
      SidecarClient client,
      AttachRequest.Register registration,
      int credits,
      Dispatcher.AgentHandler handler,
      Executor executor) {
    this.client = client;
    this.registration = registration;
    this.credits = credits;
    this.executor = executor;
    this.backOff = new BackOff(BASE, CAP, client.link().settings().uniform());
    this.dispatcher =
        new Dispatcher(handler, executor, this::onRoom, this::acknowledge, this::whenPatienceIsOver);
    this.sender = client.senderBuilder().onStreamCancelled(this::onStreamCancelled).build();
    this.refresh = new TokenRefresh(client.link().timer(), client::refreshContextTokenAsync);
  }

  Sender sender() {
    return sender;
  }

  /** Returns when no further event will be handled; throws what the sidecar refused for good. */
  void awaitOver() throws InterruptedException {
    await(over, Long.MAX_VALUE);
  }

  /** Returns when registered once; throws the refusal, or TransportException when time is up. */
  void awaitAttached(Duration timeout) throws InterruptedException {
    if (!await(firstAttached, timeout.toNanos())) {
      throw new TransportException(
          Status.Code.DEADLINE_EXCEEDED, "the sidecar has not registered the agent");
    }
  }

  private static boolean await(CompletableFuture<Void> what, long nanos)
      throws InterruptedException {
    try {
      what.get(nanos, TimeUnit.NANOSECONDS);
      return true;
    } catch (TimeoutException late) {
      return false;
    } catch (CancellationException | java.util.concurrent.ExecutionException failed) {
      if (failed.getCause() instanceof SidecarException refusal) {
        throw refusal;
      }
      throw new IllegalStateException("the agent was stopped");
    }
  }

  /** What the sidecar refused for good; null where it did not. */
  SidecarException refusal() {
    return over.isCompletedExceptionally()
        ? over.handle((nothing, error) -> (SidecarException) error).join()
        : null;
  }

  synchronized String state() {
    if (stopping) {
      return "stopping";
    }
    return attached ? "attached" : "attaching";
  }

  // Attaching

  /** Open one Attach call. What is finished from now on is a credit more. */
  void attach() {
    try {
      synchronized (this) {
        if (stopping || over.isDone()) {
          return;
        }
        client.link().checkOpen();
        began = System.nanoTime();
        stream = new AgentStream(this);
        stream.start(
            client.link().channel(),
            Tokens.asService(client.link().settings().serviceToken()),
            AttachRequest.newBuilder()
                .setRegister(registration.toBuilder().setCredits(Math.max(0, credits - inHand)))
                .build());
      }
    } catch (SidecarException refused) {
      refuse(refused);
    } catch (IllegalStateException closed) {
      refuse(new TransportException(Status.Code.CANCELLED, "the client was closed"));
    }
  }

  @Override
  public void registered(AgentStream from) {
    synchronized (this) {
      attached = from == stream;
    }
    firstAttached.complete(null);
  }

  @Override
  public void ended(AgentStream ended, SidecarException error) {
    boolean stable;
    synchronized (this) {
      if (stream != ended) {
        return;
      }
    }
    giveBack(); // first: nothing is begun or thought to be acknowledged while there is nobody to say it to
    synchronized (this) {
      stream = null;
      attached = false;
      stable = System.nanoTime() - began >= STABLE_NANOS;
      if (stopping) {
        detached.complete(null); // and not attached again: what others were left must not come back
        return;
      }
    }
    if (Sender.isPassing(error) || error instanceof InternalException) {
      again(error, stable);
    } else {
      refuse(error);
    }
  }

  /** Who is not attached holds nothing back that others may have: it comes again, here or to another worker. */
  private void giveBack() {
    for (Dispatcher.Handling each : dispatcher.giveBack()) {
      memory.forget(each.deliveryId(), each.event());
    }
  }

  private void again(SidecarException error, boolean stable) {
    // Once a break is news.
    Level level = backOff.tries() == 0 || stable ? Level.WARNING : Level.DEBUG;
    LOG.log(level, "not attached: {0}; attaching again", nameOf(error));
    if (stable) {
      backOff.reset();
    }
    long wait = backOff.nextNanos(error.retryAfter().orElse(Duration.ZERO));
    try {
      client.link().timer().schedule(this::attach, wait, TimeUnit.NANOSECONDS);
    } catch (RejectedExecutionException closed) {
      refuse(new TransportException(Status.Code.CANCELLED, "the client was closed"));
    }
  }

  private void refuse(SidecarException error) {
    LOG.log(Level.ERROR, "the agent is refused: {0}", nameOf(error));
    firstAttached.completeExceptionally(error); // first: who is told of the other may stop the agent
    over.completeExceptionally(error);
  }

  private static String nameOf(SidecarException error) {
    return error.reason().isEmpty() ? error.code().name() : error.reason();
  }

  private synchronized void onRoom() {
    inHand--;
    if (stream != null && !stopping) {
      stream.credit(1);
    }
  }

  // Events

  @Override
  public void event(AgentStream from, AttachResponse.Event frame) {
    if (frame.getKindCase() == AttachResponse.Event.KindCase.CANCELLED) {
      AttachResponse.Cancelled cancelled = frame.getCancelled();
      cancel(frame.getIsolationKey(), cancelled.getStreamId(), cancelled.getMessageId());
      return;
    }
    synchronized (this) {
      if (stopping) {
        return; // it was under way when this worker left: not acknowledged, it goes to another
      }
    }
    String deliveryId = frame.getDeliveryId();
    Answering answering = new Answering(executor);
    AgentEvent event = eventFrom(frame, answering);
    if (event == null || !memory.isNew(deliveryId, event, frame.getRedelivered())) {
      dispatcher.own(frame.getIsolationKey(), deliveryId);
      from.credit(1);
      return;
    }
    if (event instanceof AgentEvent.Closed) {
      event.context().end();
      contexts.remove(frame.getIsolationKey());
    }
    if (memory.isCancelled(event)) {
      answering.cancel();
    }
    synchronized (this) {
      inHand++;
    }
    dispatcher.receive(event, deliveryId, answering);
  }

  private Future<?> whenPatienceIsOver(Runnable call) {
    com.google.protobuf.Duration said = registration.getAckTimeout();
    Duration ackTimeout =
        registration.hasAckTimeout()
            ? Duration.ofSeconds(said.getSeconds(), said.getNanos())
            : DEFAULT_ACK_TIMEOUT;
    try {
      return client
          .link()
          .timer()
          .schedule(call, ackTimeout.toNanos() / PATIENCE_DIVISOR, TimeUnit.NANOSECONDS);
    } catch (RejectedExecutionException closed) {
      return CompletableFuture.completedFuture(null); // the client is closed: there is nobody to say it to
    }
  }

  /** While it is not attached nothing is said: the event comes again then, is known, and is acknowledged. */
  private synchronized void acknowledge(String deliveryId) {
    if (stream != null) {
      stream.acknowledge(deliveryId);
    }
  }

  /** The event as its handlers know it; null for a kind that came after this version. */
  private AgentEvent eventFrom(AttachResponse.Event frame, Answering answering) {
    AgentContext context = contextOf(frame);
    return switch (frame.getKindCase()) {
      case OPENED -> new AgentEvent.Opened(context);
      case AWAY -> new AgentEvent.Away(context);
      case BACK -> new AgentEvent.Back(context);
      case CLOSED ->
          new AgentEvent.Closed(
              context, frame.getClosed().getCode(), frame.getClosed().getReason());
      case MESSAGE -> messageFrom(frame, context, answering);
      default -> null;
    };
  }

  private static InboundMessage messageFrom(
      AttachResponse.Event frame, AgentContext context, Answering answering) {
    AttachResponse.Inbound message = frame.getMessage();
    return new InboundMessage(
        context,
        message.getMessageId(),
        message.getEventType(),
        message.getPayload(),
        Protos.contentType(message.getContentType()),
        frame.getRedelivered(),
        answering);
  }

  /** The context as its holders know it, with the token that came. */
  private AgentContext contextOf(AttachResponse.Event frame) {
    UserContext user = Protos.userContext(frame.getContext());
    AgentContext context =
        contexts.get(
            frame.getIsolationKey(), key -> new AgentContext(key, user, client, sender));
    if (context.renew(frame.getContextToken())) {
      refresh.keep(context);
    }
    return context;
  }

  private void onStreamCancelled(StreamCancellation cancelled) {
    cancel(cancelled.isolationKey(), cancelled.streamId(), cancelled.replyTo());
  }

  private void cancel(String isolationKey, String streamId, String messageId) {
    if (!messageId.isEmpty()) {
      memory.cancel(isolationKey, messageId);
    }
    dispatcher.cancel(isolationKey, streamId, messageId);
  }

  // The end

  /**
   * Half-close, let handlers end within the grace, interrupt the others, close the sender. Called once. It
   * leaves first, so that nobody waits for this worker's grace whom another could answer.
   */
  void stop(Duration grace) {
    synchronized (this) {
      stopping = true;
    }
    dispatcher.leave();
    halfClose();
    dispatcher.finish(grace);
    awaitDetached();
    refresh.stop();
    sender.close();
    over.complete(null);
    firstAttached.completeExceptionally(
        new TransportException(Status.Code.CANCELLED, "the agent was stopped"));
  }

  /** A stop under way is to give no grace any more. */
  void giveUp() {
    dispatcher.giveUp();
  }

  /**
   * Say what is still to be said, then be attached no more; the sidecar hands on what is not acknowledged. Does
   * not wait for it, and gives the call up after a while.
   */
  private synchronized void halfClose() {
    AgentStream leaving = stream;
    if (leaving == null) {
      detached.complete(null);
      return;
    }
    if (attached) {
      leaving.leave();
    } else {
      leaving.cancel();
    }
    detached
        .completeOnTimeout(null, HALF_CLOSE_TIMEOUT.toNanos(), TimeUnit.NANOSECONDS)
        .thenRun(leaving::cancel);
  }

  private void awaitDetached() {
    try {
      await(detached, Long.MAX_VALUE);
    } catch (InterruptedException interrupted) {
      detached.complete(null);
      Thread.currentThread().interrupt();
    }
  }
}
