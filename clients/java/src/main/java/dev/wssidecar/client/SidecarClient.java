package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarException;
import io.grpc.ChannelCredentials;
import java.time.Duration;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.DoubleSupplier;
import java.util.function.Supplier;

/**
 * Sends to users through a sidecar. One a process is enough; for any number of threads. It connects when it is first
 * used.
 *
 * <p>Every call has one deadline over all its tries: 5 s, unless {@link Builder#timeout} or {@link #withTimeout} say
 * otherwise. UNAVAILABLE is tried again within it where that is safe: a message always has a message_id, so that the
 * sidecar takes it once. Not tried again: what is over a limit (RESOURCE_EXHAUSTED: yours to decide), a deadline that
 * passed, and {@code closeManager}, {@code refresh…}, {@code revoke…} and {@code exchangeContextToken}, of which a
 * second one is another.
 *
 * <p>What goes wrong is a {@link SidecarException}: thrown by the blocking methods, and the future's failure of those
 * that end in {@code Async}. A blocking method whose thread is interrupted cancels its call, keeps the interrupt flag
 * and throws TransportException, CANCELLED; a call that was cancelled may have been taken.
 */
public final class SidecarClient implements AutoCloseable {
  /** The version of this client, and of the contract that it speaks. */
  public static final String VERSION = "0.1.0";

  private final Link link;
  private final Duration timeout;

  private SidecarClient(Link link, Duration timeout) {
    this.link = link;
    this.timeout = timeout;
  }

  /**
   * A client by the environment: {@code SIDECAR_GRPC_ENDPOINT} and {@code SIDECAR_SERVICE_TOKEN}.
   *
   * @return the client, to be closed
   */
  public static SidecarClient create() {
    return builder().build();
  }

  /**
   * Says where the sidecar is, and how to reach it.
   *
   * @return a builder with the defaults
   */
  public static Builder builder() {
    return new Builder();
  }

  /**
   * This client with another deadline for its calls. They share one connection: closing either closes both.
   *
   * @param timeout more than nothing
   * @return the other view
   */
  public SidecarClient withTimeout(Duration timeout) {
    if (timeout.isNegative() || timeout.isZero()) {
      throw new IllegalArgumentException("timeout is more than 0");
    }
    return new SidecarClient(link, timeout);
  }

  /**
   * Return when the sidecar serves; it need not have been started yet.
   *
   * @throws SidecarException TransportException when the client's timeout is up
   */
  public void waitUntilReady() {
    Blocking.get(waitUntilReadyAsync());
  }

  /**
   * Done when the sidecar serves; it need not have been started yet.
   *
   * @return done, or failed when the client's timeout is up
   */
  public CompletableFuture<Void> waitUntilReadyAsync() {
    return Readiness.await(link, timeout);
  }

  // DeliveryService

  /**
   * Send one message.
   *
   * @param to where it goes
   * @param message what is said
   * @return the receipt
   */
  public Receipt sendToUser(Recipient to, Message message) {
    return sendToUser(to, message, SendOptions.NONE);
  }

  /**
   * Send one message.
   *
   * @param to where it goes
   * @param message what is said
   * @param options how long it may take
   * @return the receipt
   */
  public Receipt sendToUser(Recipient to, Message message, SendOptions options) {
    return Blocking.get(sendToUserAsync(to, message, options));
  }

  /**
   * Send one message.
   *
   * @param to where it goes
   * @param message what is said
   * @return the receipt, to be
   */
  public CompletableFuture<Receipt> sendToUserAsync(Recipient to, Message message) {
    return sendToUserAsync(to, message, SendOptions.NONE);
  }

  /**
   * Send one message.
   *
   * @param to where it goes
   * @param message what is said
   * @param options how long it may take
   * @return the receipt, to be
   */
  public CompletableFuture<Receipt> sendToUserAsync(
      Recipient to, Message message, SendOptions options) {
    return run(() -> Requests.sendToUser(to, message, options.waitForAck()), options.timeout());
  }

  /**
   * Send one critical event. Scope {@code emit}.
   *
   * @param to where it goes
   * @param event what is said
   * @return the receipt
   */
  public Receipt emitCriticalEvent(Recipient to, CriticalEvent event) {
    return emitCriticalEvent(to, event, SendOptions.NONE);
  }

  /**
   * Send one critical event. Scope {@code emit}.
   *
   * @param to where it goes
   * @param event what is said
   * @param options how long it may take
   * @return the receipt
   */
  public Receipt emitCriticalEvent(Recipient to, CriticalEvent event, SendOptions options) {
    return Blocking.get(emitCriticalEventAsync(to, event, options));
  }

  /**
   * Send one critical event. Scope {@code emit}.
   *
   * @param to where it goes
   * @param event what is said
   * @param options how long it may take
   * @return the receipt, to be
   */
  public CompletableFuture<Receipt> emitCriticalEventAsync(
      Recipient to, CriticalEvent event, SendOptions options) {
    return run(() -> Requests.emitCriticalEvent(to, event, options.waitForAck()), options.timeout());
  }

  /**
   * Send at most 1,000 messages; each stands or falls alone.
   *
   * @param items the messages, accepted in this order
   * @return what became of each, in the items' order
   */
  public List<BatchResult> sendBatch(List<BatchItem> items) {
    return Blocking.get(sendBatchAsync(items));
  }

  /**
   * Send at most 1,000 messages; each stands or falls alone.
   *
   * @param items the messages, accepted in this order
   * @return what became of each, in the items' order, to be
   */
  public CompletableFuture<List<BatchResult>> sendBatchAsync(List<BatchItem> items) {
    return run(() -> Requests.sendBatch(items));
  }

  /**
   * Send one message to every context of the token's own user or tenant. Idempotent by message_id in each outbox.
   *
   * @param contextToken with the scope {@code broadcast:user} or {@code broadcast:tenant}
   * @param scope whom it reaches
   * @param message what is said
   * @return how far it came
   */
  public BroadcastResult broadcast(String contextToken, BroadcastScope scope, Message message) {
    return Blocking.get(broadcastAsync(contextToken, scope, message));
  }

  /**
   * Send one message to every context of the token's own user or tenant. Idempotent by message_id in each outbox.
   *
   * @param contextToken with the scope {@code broadcast:user} or {@code broadcast:tenant}
   * @param scope whom it reaches
   * @param message what is said
   * @return how far it came, to be
   */
  public CompletableFuture<BroadcastResult> broadcastAsync(
      String contextToken, BroadcastScope scope, Message message) {
    return run(() -> Requests.broadcast(contextToken, scope, message));
  }

  /**
   * End the context with the close code 4505. Scope {@code close}.
   *
   * @param of the context
   * @return how many sockets it had
   */
  public int closeManager(Recipient of) {
    return closeManager(of, 0, "");
  }

  /**
   * End the context. Scope {@code close}.
   *
   * @param of the context
   * @param code the WebSocket close code: 4505, which 0 is too, or 4900 to 4999 with a meaning of your own
   * @param reason the close text, at most 123 bytes
   * @return how many sockets it had
   */
  public int closeManager(Recipient of, int code, String reason) {
    return Blocking.get(closeManagerAsync(of, code, reason));
  }

  /**
   * End the context. Scope {@code close}. Not repeated.
   *
   * @param of the context
   * @param code the WebSocket close code: 4505, which 0 is too, or 4900 to 4999 with a meaning of your own
   * @param reason the close text, at most 123 bytes
   * @return how many sockets it had, to be
   */
  public CompletableFuture<Integer> closeManagerAsync(Recipient of, int code, String reason) {
    return run(() -> Requests.closeManager(of, code, reason));
  }

  /**
   * Read the context's counters. Scope {@code stats}.
   *
   * @param of the context
   * @return the counters
   */
  public ManagerStats getManagerStats(Recipient of) {
    return Blocking.get(getManagerStatsAsync(of));
  }

  /**
   * Read the context's counters. Scope {@code stats}.
   *
   * @param of the context
   * @return the counters, to be
   */
  public CompletableFuture<ManagerStats> getManagerStatsAsync(Recipient of) {
    return run(() -> Requests.getManagerStats(of));
  }

  // ContextService

  /**
   * Say what the token opens.
   *
   * @param contextToken the token
   * @return its isolation key, its user, its scopes
   */
  public ContextFacts getContext(String contextToken) {
    return Blocking.get(getContextAsync(contextToken));
  }

  /**
   * Say what the token opens.
   *
   * @param contextToken the token
   * @return its isolation key, its user, its scopes, to be
   */
  public CompletableFuture<ContextFacts> getContextAsync(String contextToken) {
    return run(() -> Requests.getContext(contextToken));
  }

  /**
   * Get another token with the same scopes, while the context lives; the old one lives on. Not repeated.
   *
   * @param contextToken the old token
   * @return the new one
   */
  public ContextToken refreshContextToken(String contextToken) {
    return Blocking.get(refreshContextTokenAsync(contextToken));
  }

  /**
   * Get another token with the same scopes, while the context lives; the old one lives on. Not repeated.
   *
   * @param contextToken the old token
   * @return the new one, to be
   */
  public CompletableFuture<ContextToken> refreshContextTokenAsync(String contextToken) {
    return run(() -> Requests.refreshContextToken(contextToken));
  }

  /**
   * End the token and all that was refreshed from it. Not repeated.
   *
   * @param contextToken the token
   */
  public void revokeContextToken(String contextToken) {
    Blocking.get(revokeContextTokenAsync(contextToken));
  }

  /**
   * End the token and all that was refreshed from it. Not repeated.
   *
   * @param contextToken the token
   * @return done when it has ended
   */
  public CompletableFuture<Void> revokeContextTokenAsync(String contextToken) {
    return run(() -> Requests.revokeContextToken(contextToken));
  }

  /**
   * Get a context token for a user's own token and one of that user's contexts, by the service token. Not repeated.
   *
   * @param userToken the user's own token, a secret
   * @param connectionId the context
   * @param scopes what it is to allow; none: what the service may of {@code send}, {@code emit} and {@code stats}
   * @return the token, and what it opens
   */
  public ContextGrant exchangeContextToken(
      String userToken, String connectionId, List<String> scopes) {
    return Blocking.get(exchangeContextTokenAsync(userToken, connectionId, scopes));
  }

  /**
   * Get a context token for a user's own token and one of that user's contexts, by the service token. Not repeated.
   *
   * @param userToken the user's own token, a secret
   * @param connectionId the context
   * @param scopes what it is to allow; none: what the service may of {@code send}, {@code emit} and {@code stats}
   * @return the token, and what it opens, to be
   */
  public CompletableFuture<ContextGrant> exchangeContextTokenAsync(
      String userToken, String connectionId, List<String> scopes) {
    String serviceToken = link.settings().serviceToken();
    return run(
        () -> Requests.exchangeContextToken(userToken, connectionId, scopes, serviceToken));
  }

  // The fast way

  /**
   * A sender for many messages, with the default limits. Closed with the client, or before.
   *
   * @return the sender
   */
  public Sender sender() {
    return senderBuilder().build();
  }

  /**
   * Says what a sender holds, and what it is told.
   *
   * @return a builder with the defaults
   */
  public SenderBuilder senderBuilder() {
    return new SenderBuilder(link, timeout);
  }

  /** Close the senders side by side, within 5 s, then the connection; calls under way fail, CANCELLED. Idempotent. */
  @Override
  public void close() {
    link.close();
  }

  Link link() {
    return link;
  }

  private <Q, A, T> CompletableFuture<T> run(Supplier<UnaryCall<Q, A, T>> make) {
    return run(make, null);
  }

  /** What cannot be asked fails as if it had been. */
  private <Q, A, T> CompletableFuture<T> run(
      Supplier<UnaryCall<Q, A, T>> make, Duration callTimeout) {
    try {
      Duration within = callTimeout == null ? timeout : callTimeout;
      return Attempts.run(link, make.get(), within.toNanos());
    } catch (SidecarException refusedHere) {
      return CompletableFuture.failedFuture(refusedHere);
    }
  }

  @Override
  public String toString() {
    return "SidecarClient[" + link + "]";
  }

  /** Where the sidecar is, and how to reach it. What is not said comes from the environment, or is the default. */
  public static final class Builder {
    private String endpoint;
    private String serviceToken;
    private ChannelCredentials credentials;
    private Duration timeout;
    private int maxAttempts = Settings.DEFAULT_MAX_ATTEMPTS;
    private DoubleSupplier uniform = () -> ThreadLocalRandom.current().nextDouble();

    private Builder() {}

    /**
     * Where the sidecar is.
     *
     * @param endpoint {@code host:port} or {@code unix:/path}. Default: {@code SIDECAR_GRPC_ENDPOINT}, else
     * 127.0.0.1:50051
     * @return this
     */
    public Builder endpoint(String endpoint) {
      this.endpoint = endpoint;
      return this;
    }

    /**
     * Which service this is.
     *
     * @param serviceToken a secret, sent only with the calls that need it. Default: {@code SIDECAR_SERVICE_TOKEN}
     * @return this
     */
    public Builder serviceToken(String serviceToken) {
      this.serviceToken = serviceToken;
      return this;
    }

    /**
     * How to speak TLS: {@link io.grpc.TlsChannelCredentials}, with a CA of your own, and a client certificate for
     * mTLS.
     *
     * @param credentials null: plain TCP, or a Unix socket
     * @return this
     */
    public Builder credentials(ChannelCredentials credentials) {
      this.credentials = credentials;
      return this;
    }

    /**
     * Every call's deadline, over all its tries.
     *
     * @param timeout more than nothing. Default: 5 s
     * @return this
     */
    public Builder timeout(Duration timeout) {
      this.timeout = Objects.requireNonNull(timeout, "timeout");
      return this;
    }

    /**
     * How often a call that may be repeated is tried.
     *
     * @param maxAttempts at least 1. Default: 4
     * @return this
     */
    public Builder maxAttempts(int maxAttempts) {
      this.maxAttempts = maxAttempts;
      return this;
    }

    /** The randomness of the back-off, numbers of [0, 1): for tests. */
    Builder uniform(DoubleSupplier uniform) {
      this.uniform = uniform;
      return this;
    }

    /**
     * The client. Nothing is connected yet.
     *
     * @return the client, to be closed
     */
    public SidecarClient build() {
      Settings settings =
          Settings.of(
              endpoint, serviceToken, credentials, timeout, maxAttempts, uniform, System.getenv());
      return new SidecarClient(new Link(settings), settings.timeout());
    }
  }
}
