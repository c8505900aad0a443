package dev.wssidecar.client;

/** What an {@link Agent}'s handlers are: lambdas that may wait, and may throw. */
public final class AgentHandlers {
  private AgentHandlers() {}

  /** What handles a change of a context. */
  @FunctionalInterface
  public interface ContextHandler {
    /**
     * Handle it. May wait.
     *
     * @param context the context
     * @throws Exception is logged
     */
    void handle(AgentContext context) throws Exception;
  }

  /** What handles the end of a context. */
  @FunctionalInterface
  public interface ClosedHandler {
    /**
     * Handle it. May wait.
     *
     * @param context the context
     * @param closed why it ended
     * @throws Exception is logged
     */
    void handle(AgentContext context, AgentEvent.Closed closed) throws Exception;
  }

  /** What handles a message of a user's. */
  @FunctionalInterface
  public interface MessageHandler {
    /**
     * Answer it. May wait; is interrupted when the client wants no answer any more.
     *
     * @param context where it came from
     * @param message what was said
     * @throws Exception is logged, and fails the message's response streams
     */
    void handle(AgentContext context, InboundMessage message) throws Exception;
  }
}
