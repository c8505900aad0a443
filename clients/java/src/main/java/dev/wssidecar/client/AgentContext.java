package dev.wssidecar.client;

import dev.wssidecar.client.errors.ManagerGoneException;
import dev.wssidecar.client.errors.TokenException;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.function.Function;

/**
 * One connection context of one user, as an agent's handlers have it. Its token is always the newest that came, and is
 * refreshed before it ends as long as somebody holds this object. Everything is sent with that token, to that user.
 */
public final class AgentContext {
  private final UserContext user;
  private final SidecarClient client;
  private final Sender sender;
  private volatile Recipient recipient;
  private volatile boolean ended;

  AgentContext(String isolationKey, UserContext user, SidecarClient client, Sender sender) {
    this.user = user;
    this.client = client;
    this.sender = sender;
    this.recipient = Recipient.of(isolationKey, "").expecting(user.userId());
  }

  /**
   * Who the context belongs to.
   *
   * @return the user
   */
  public UserContext user() {
    return user;
  }

  /**
   * The context's isolation key.
   *
   * @return the key, opaque
   */
  public String isolationKey() {
    return recipient.isolationKey();
  }

  /**
   * The newest context token, a secret. Read it each time.
   *
   * @return the token
   */
  public String contextToken() {
    return recipient.contextToken();
  }

  /**
   * Where a message goes by the newest token. Read it each time.
   *
   * @return the recipient
   */
  public Recipient recipient() {
    return recipient;
  }

  /**
   * Whether the context has ended: it was closed, or the sidecar has answered MANAGER_GONE.
   *
   * @return true then
   */
  public boolean ended() {
    return ended;
  }

  /**
   * Send one message to this context.
   *
   * @param message what is said
   * @return the receipt
   */
  public Receipt send(Message message) {
    return send(message, SendOptions.NONE);
  }

  /**
   * Send one message to this context.
   *
   * @param message what is said
   * @param options how long it may take
   * @return the receipt
   */
  public Receipt send(Message message, SendOptions options) {
    return Blocking.get(sendAsync(message, options));
  }

  /**
   * Send one message to this context. ManagerGoneException says that the context has ended.
   *
   * @param message what is said
   * @param options how long it may take
   * @return the receipt, to be
   */
  public CompletableFuture<Receipt> sendAsync(Message message, SendOptions options) {
    return call(
        to ->
            options.waitForAck() == null
                ? sender.sendAsync(to, message, options)
                : client.sendToUserAsync(to, message, options));
  }

  /**
   * Send one critical event to this context.
   *
   * @param event what is said
   * @param options how long it may take
   * @return the receipt
   */
  public Receipt emitCriticalEvent(CriticalEvent event, SendOptions options) {
    return Blocking.get(call(to -> client.emitCriticalEventAsync(to, event, options)));
  }

  /**
   * End the context. Needs the scope {@code close}.
   *
   * @param code 4505, or 4900 to 4999 with a meaning of your own
   * @param reason the close text, at most 123 bytes
   * @return how many sockets it had
   */
  public int close(int code, String reason) {
    return Blocking.get(call(to -> client.closeManagerAsync(to, code, reason)));
  }

  /** Make a call by the newest token; again where a newer one came while the first was refused. */
  private <T> CompletableFuture<T> call(Function<Recipient, CompletableFuture<T>> make) {
    Outcome<T> outcome = new Outcome<>();
    attempt(make, outcome);
    return outcome;
  }

  private <T> void attempt(Function<Recipient, CompletableFuture<T>> make, Outcome<T> outcome) {
    Recipient to = recipient;
    CompletableFuture<T> call = make.apply(to);
    outcome.whenCancelled(() -> call.cancel(true));
    call.whenComplete(
        (value, error) -> {
          if (error == null) {
            outcome.complete(value);
          } else if (error instanceof TokenException && to != recipient) {
            attempt(make, outcome);
          } else {
            ended |= error instanceof ManagerGoneException;
            outcome.completeExceptionally(error);
          }
        });
  }

  /** A newer token has come; false where it is the one that is there. */
  boolean renew(String token) {
    if (token.isEmpty() || token.equals(recipient.contextToken())) {
      return false;
    }
    recipient = Recipient.of(recipient.isolationKey(), token).expecting(user.userId());
    return true;
  }

  void end() {
    ended = true;
  }

  /** How long to wait before the token is to be refreshed: the sidecar hands a token out until half of its life is over. */
  Duration refreshAfter() {
    return TokenLife.of(recipient.contextToken()).multipliedBy(2).dividedBy(5);
  }

  @Override
  public String toString() {
    return "AgentContext[userId=" + user.userId() + ", connectionId=" + user.connectionId() + "]";
  }
}
