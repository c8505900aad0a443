package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarException;
import io.grpc.ChannelCredentials;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;
import sidecar.api.v1.AttachRequest;

/**
 * One worker of an agent service: attaches to the sidecar, is told of its users, answers them. Runs no server of its
 * own.
 *
 * <pre>{@code
 * Agent.builder("answers")
 *     .onMessage("ask", (context, message) -> message.reply("answer").sendText("You asked: " + message.text()))
 *     .build()
 *     .runForever();
 * }</pre>
 *
 * <p>Events of one context are handled one after the other, those of different contexts side by side, {@code credits}
 * at most, on threads of the agent's executor: a handler may wait. One that throws is logged, and nothing else ends
 * for it. When the client wants no answer any more its handler's thread is interrupted, that one alone. An event is
 * acknowledged when its handler begins; one that waits behind another of its context when half of {@code ackTimeout} is
 * over. Another worker gets it only where this process is lost or stopped before that.
 */
public final class Agent implements AutoCloseable {
  private static final Logger LOG = System.getLogger("dev.wssidecar.client");

  private final String serviceName;
  private final Duration grace;
  private final boolean ownsClient;
  private final SidecarClient client;
  private final ExecutorService ownExecutor;
  private final Map<Class<?>, Dispatcher.AgentHandler> handlers;
  private final Map<String, AgentHandlers.MessageHandler> messageHandlers;
  private final AgentLoop loop;
  private boolean started;
  private CompletableFuture<Void> stopped;

  private Agent(Builder builder) {
    this.serviceName = builder.serviceName;
    this.grace = builder.grace;
    this.handlers = Map.copyOf(builder.handlers);
    this.messageHandlers = Map.copyOf(builder.messageHandlers);
    AttachRequest.Register registration = builder.registration();
    this.ownsClient = builder.client == null;
    this.client = ownsClient ? builder.connection.build() : builder.client;
    this.ownExecutor =
        builder.executor == null ? Executors.newCachedThreadPool(Agent::workerThread) : null;
    ExecutorService executor = builder.executor == null ? ownExecutor : builder.executor;
    this.loop = new AgentLoop(client, registration, builder.credits, this::handle, executor);
  }

  private static final AtomicInteger WORKERS = new AtomicInteger();

  private static Thread workerThread(Runnable work) {
    Thread thread = new Thread(work, "sidecar-agent-" + WORKERS.incrementAndGet());
    thread.setDaemon(true);
    return thread;
  }

  /**
   * Says what an agent is and does.
   *
   * @param serviceName the same for all workers of the service
   * @return a builder
   */
  public static Builder builder(String serviceName) {
    return new Builder(serviceName);
  }

  // Running

  /**
   * Begin to attach; does not wait for the sidecar.
   *
   * @return this
   */
  public synchronized Agent start() {
    if (started) {
      throw new IllegalStateException("an agent is started once");
    }
    started = true;
    loop.attach();
    return this;
  }

  /**
   * Return when the sidecar has registered this worker.
   *
   * @param timeout how long to wait
   * @throws InterruptedException when the waiting thread is interrupted
   * @throws SidecarException the sidecar's refusal, or TransportException when time is up
   */
  public void waitAttached(Duration timeout) throws InterruptedException {
    loop.awaitAttached(timeout);
  }

  /**
   * Start, and serve until {@link #stop()}. Interrupted, it stops without grace.
   *
   * @throws InterruptedException when the waiting thread is interrupted
   * @throws SidecarException what the sidecar refuses for good: SUBSCRIPTION_TAKEN, SERVICE_DENIED, TOKEN_INVALID,
   * BAD_REQUEST
   */
  public void run() throws InterruptedException {
    start();
    try {
      loop.awaitOver();
    } catch (InterruptedException interrupted) {
      stop(Duration.ZERO);
      throw interrupted;
    } finally {
      stop();
    }
  }

  /**
   * Serve as a program of its own: on SIGTERM and SIGINT it stops in order, then the process ends.
   *
   * @throws InterruptedException when the waiting thread is interrupted
   * @throws SidecarException what the sidecar refuses for good
   */
  public void runForever() throws InterruptedException {
    Thread hook = new Thread(this::stop, "sidecar-agent-stop");
    Runtime.getRuntime().addShutdownHook(hook);
    try {
      run();
    } finally {
      removeHook(hook);
    }
  }

  private static void removeHook(Thread hook) {
    try {
      Runtime.getRuntime().removeShutdownHook(hook);
    } catch (IllegalStateException ending) {
      // The process ends: the hook is what stopped the agent.
    }
  }

  /** As {@link #stop(Duration)}, with the agent's own grace. */
  public void stop() {
    stop(grace);
  }

  /**
   * Detach, let handlers end within the grace, interrupt the others. Idempotent, bounded. What is not acknowledged,
   * and what comes from now on, other workers of the service have at once; what is, is handled here. A handler
   * that is interrupted fails its response streams, so that their users see an end. A second call waits for the
   * first; one without grace has the handlers end sooner.
   *
   * @param grace what handlers have to end in
   */
  public void stop(Duration grace) {
    CompletableFuture<Void> mine = new CompletableFuture<>();
    CompletableFuture<Void> first;
    synchronized (this) {
      first = stopped;
      if (first == null) {
        stopped = mine;
      }
    }
    if (first != null) {
      if (grace.isZero()) {
        loop.giveUp();
      }
      first.join();
      return;
    }
    try {
      loop.stop(grace);
      if (ownsClient) {
        client.close();
      }
      if (ownExecutor != null) {
        ownExecutor.shutdown();
      }
    } finally {
      mine.complete(null);
    }
  }

  /** As {@link #stop()}. */
  @Override
  public void close() {
    stop();
  }

  // Events

  private void handle(AgentEvent event) throws Exception {
    if (event instanceof InboundMessage message) {
      handleMessage(message);
      return;
    }
    Dispatcher.AgentHandler handler = handlers.get(event.getClass());
    if (handler != null) {
      handler.handle(event);
    }
  }

  private void handleMessage(InboundMessage message) throws Exception {
    AgentHandlers.MessageHandler handler = messageHandlers.get(message.event());
    if (handler == null) {
      handler = messageHandlers.get(Builder.ANY);
    }
    if (handler == null) {
      LOG.log(Level.WARNING, "no handler takes the event {0}", message.event());
    } else {
      handler.handle(message.context(), message);
    }
  }

  @Override
  public synchronized String toString() {
    return "Agent[" + serviceName + ", " + (started ? loop.state() : "idle") + "]";
  }

  /** What an agent is and does. */
  public static final class Builder {
    static final String ANY = "*";

    private final String serviceName;
    private final Map<Class<?>, Dispatcher.AgentHandler> handlers = new HashMap<>();
    private final Map<String, AgentHandlers.MessageHandler> messageHandlers = new HashMap<>();
    private final SidecarClient.Builder connection = SidecarClient.builder();
    private List<Subscription> subscriptions;
    private boolean connects;
    private SidecarClient client;
    private ExecutorService executor;
    private int credits = 64;
    private Duration ackTimeout;
    private Duration grace = Duration.ofSeconds(10);

    private Builder(String serviceName) {
      this.serviceName = Objects.requireNonNull(serviceName, "serviceName");
    }

    /**
     * A context was made. Told of every context of the service's tenants.
     *
     * @param handler what to do then
     * @return this
     */
    public Builder onOpened(AgentHandlers.ContextHandler handler) {
      return on(AgentEvent.Opened.class, event -> handler.handle(event.context()));
    }

    /**
     * The user's connection is lost, for now.
     *
     * @param handler what to do then
     * @return this
     */
    public Builder onAway(AgentHandlers.ContextHandler handler) {
      return on(AgentEvent.Away.class, event -> handler.handle(event.context()));
    }

    /**
     * The user is connected again.
     *
     * @param handler what to do then
     * @return this
     */
    public Builder onBack(AgentHandlers.ContextHandler handler) {
      return on(AgentEvent.Back.class, event -> handler.handle(event.context()));
    }

    /**
     * The context has ended.
     *
     * @param handler what to do then
     * @return this
     */
    public Builder onClosed(AgentHandlers.ClosedHandler handler) {
      return on(
          AgentEvent.Closed.class,
          event -> handler.handle(event.context(), (AgentEvent.Closed) event));
    }

    /**
     * A message of a user's that no other handler takes.
     *
     * @param handler what to do then
     * @return this
     */
    public Builder onMessage(AgentHandlers.MessageHandler handler) {
      return onMessage(ANY, handler);
    }

    /**
     * A message of a user's, of that event.
     *
     * @param event the event
     * @param handler what to do then
     * @return this
     */
    public Builder onMessage(String event, AgentHandlers.MessageHandler handler) {
      Objects.requireNonNull(handler, "handler");
      if (messageHandlers.putIfAbsent(event, handler) != null) {
        throw new IllegalArgumentException("the event " + event + " has a handler");
      }
      return this;
    }

    private Builder on(Class<? extends AgentEvent> kind, Dispatcher.AgentHandler handler) {
      if (handlers.putIfAbsent(kind, handler) != null) {
        throw new IllegalArgumentException(kind.getSimpleName() + " has a handler");
      }
      return this;
    }

    /**
     * What the service takes. Default: the events that it has handlers for, or {@code *}.
     *
     * @param subscriptions at least one
     * @return this
     */
    public Builder subscriptions(List<Subscription> subscriptions) {
      this.subscriptions = List.copyOf(subscriptions);
      return this;
    }

    /**
     * Events in hand at most.
     *
     * @param credits at least 1. Default: 64
     * @return this
     */
    public Builder credits(int credits) {
      if (credits < 1) {
        throw new IllegalArgumentException("credits is at least 1");
      }
      this.credits = credits;
      return this;
    }

    /**
     * How long an event may stay unacknowledged before it is sent again.
     *
     * @param ackTimeout at most an hour. Default: the sidecar's
     * @return this
     */
    public Builder ackTimeout(Duration ackTimeout) {
      this.ackTimeout = ackTimeout;
      return this;
    }

    /**
     * What handlers have to end in when it stops.
     *
     * @param grace the time. Default: 10 s
     * @return this
     */
    public Builder grace(Duration grace) {
      this.grace = Objects.requireNonNull(grace, "grace");
      return this;
    }

    /**
     * What handlers run on, which is not shut down. Default: a daemon thread for each that is under way. On Java 21,
     * {@code Executors.newVirtualThreadPerTaskExecutor()} does as well.
     *
     * @param executor the executor; with fewer threads than credits, handlers wait for each other
     * @return this
     */
    public Builder executor(ExecutorService executor) {
      this.executor = executor;
      return this;
    }

    /**
     * A client to share, which is not closed. Otherwise the agent connects by itself.
     *
     * @param client the client
     * @return this
     */
    public Builder client(SidecarClient client) {
      this.client = client;
      return this;
    }

    /**
     * Where the sidecar is, as {@link SidecarClient.Builder#endpoint}.
     *
     * @param endpoint the endpoint
     * @return this
     */
    public Builder endpoint(String endpoint) {
      connects = true;
      connection.endpoint(endpoint);
      return this;
    }

    /**
     * Which service this is, as {@link SidecarClient.Builder#serviceToken}.
     *
     * @param serviceToken a secret
     * @return this
     */
    public Builder serviceToken(String serviceToken) {
      connects = true;
      connection.serviceToken(serviceToken);
      return this;
    }

    /**
     * How to speak TLS, as {@link SidecarClient.Builder#credentials}.
     *
     * @param credentials the credentials
     * @return this
     */
    public Builder credentials(ChannelCredentials credentials) {
      connects = true;
      connection.credentials(credentials);
      return this;
    }

    /**
     * The agent. Nothing is connected yet.
     *
     * @return the agent, to be started once
     */
    public Agent build() {
      if (client != null && connects) {
        throw new IllegalArgumentException("give either a client, or where one is to connect");
      }
      return new Agent(this);
    }

    private AttachRequest.Register registration() {
      AttachRequest.Register.Builder register =
          AttachRequest.Register.newBuilder()
              .setServiceName(serviceName)
              .setMaxFrameEvents(AgentStream.MAX_FRAME_EVENTS);
      for (Subscription each : taken()) {
        register.addSubscriptions(
            AttachRequest.Subscription.newBuilder()
                .setTenantId(each.tenantId())
                .setEvent(each.event()));
      }
      if (ackTimeout != null) {
        register.setAckTimeout(Protos.duration(ackTimeout, "register.ack_timeout"));
      }
      return register.build();
    }

    private List<Subscription> taken() {
      if (subscriptions != null) {
        return subscriptions;
      }
      List<Subscription> named = new ArrayList<>();
      messageHandlers.keySet().forEach(event -> named.add(Subscription.to(event)));
      return named.isEmpty() ? List.of(Subscription.to(ANY)) : named;
    }
  }
}
