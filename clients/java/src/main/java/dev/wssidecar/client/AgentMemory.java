package dev.wssidecar.client;

import java.util.LinkedHashMap;
import java.util.Map;

/** Which events this process has taken, and which messages were cancelled before they came: the latest of each. */
final class AgentMemory {
  static final int MAX_REMEMBERED = 10_000;

  private final Recent taken;
  private final Recent messages;
  private final Recent cancelled;

  AgentMemory(int most) {
    taken = new Recent(most);
    messages = new Recent(most);
    cancelled = new Recent(most);
  }

  /**
   * Whether this process takes that event for the first time; from then on it is known. A delivery_id lasts as long as the
   * sidecar's process. A message that a store kept over its end comes under another one, marked; it is known by the client's
   * own id.
   */
  synchronized boolean isNew(String deliveryId, AgentEvent event, boolean redelivered) {
    Named message = named(event);
    boolean known =
        taken.has(deliveryId) || redelivered && message != null && messages.has(message);
    taken.add(deliveryId);
    if (message != null) {
      messages.add(message);
    }
    return !known;
  }

  /** It was not begun, and is new when it comes again. */
  synchronized void forget(String deliveryId, AgentEvent event) {
    taken.remove(deliveryId);
    Named message = named(event);
    if (message != null) {
      messages.remove(message);
    }
  }

  /** The client wants no answer to that message, which may not have come yet. */
  synchronized void cancel(String isolationKey, String messageId) {
    cancelled.add(new Named(isolationKey, messageId));
  }

  /** Whether the client said that it wants no answer to that. */
  synchronized boolean isCancelled(AgentEvent event) {
    Named message = named(event);
    return message != null && cancelled.has(message);
  }

  private static Named named(AgentEvent event) {
    return event instanceof InboundMessage message && !message.id().isEmpty()
        ? new Named(message.context().isolationKey(), message.id())
        : null;
  }

  private record Named(String isolationKey, String messageId) {}

  /** So many names at most. */
  private static final class Recent {
    private final Map<Object, Boolean> names;

    private Recent(int most) {
      names =
          new LinkedHashMap<>() {
            private static final long serialVersionUID = 1L;

            @Override
            protected boolean removeEldestEntry(Map.Entry<Object, Boolean> eldest) {
              return size() > most;
            }
          };
    }

    private boolean has(Object name) {
      return names.containsKey(name);
    }

    private void add(Object name) {
      names.put(name, true);
    }

    private void remove(Object name) {
      names.remove(name);
    }
  }
}
