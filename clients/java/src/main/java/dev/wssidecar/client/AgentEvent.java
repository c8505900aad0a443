package dev.wssidecar.client;

/** What an agent is told of connection contexts. */
public sealed interface AgentEvent
    permits AgentEvent.Opened, AgentEvent.Away, AgentEvent.Back, AgentEvent.Closed, InboundMessage {
  /**
   * The context that it happened in.
   *
   * @return the context
   */
  AgentContext context();

  /**
   * A context was made: its user is connected.
   *
   * @param context the context
   */
  record Opened(AgentContext context) implements AgentEvent {}

  /**
   * The user's connection is lost; it may come back within the resume window.
   *
   * @param context the context
   */
  record Away(AgentContext context) implements AgentEvent {}

  /**
   * The user is connected again.
   *
   * @param context the context
   */
  record Back(AgentContext context) implements AgentEvent {}

  /**
   * The context has ended: nothing can be sent any more.
   *
   * @param context the context
   * @param code the WebSocket close code, 0 for no socket
   * @param reason the catalogue's name, or what else ended it
   */
  record Closed(AgentContext context, int code, String reason) implements AgentEvent {}
}
