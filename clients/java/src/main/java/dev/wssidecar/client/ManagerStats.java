package dev.wssidecar.client;

import java.time.Duration;
import java.time.Instant;

/**
 * The counters of one manager.
 *
 * @param connectionsManaged sockets attached now, mirrors included
 * @param messagesSentTotal messages accepted since the context was made; duplicates count once
 * @param messagesFailedTotal messages refused since the context was made, after their token was found good
 * @param lastActivityTime when the client or a service last did something that keeps the context from idling out
 * @param managerAge how long ago the context was made
 * @param cleanupScheduled the context is due to end unless something happens
 * @param outboxMessages messages in the outbox
 * @param outboxBytes what they count for, in bytes
 */
public record ManagerStats(
    int connectionsManaged,
    long messagesSentTotal,
    long messagesFailedTotal,
    Instant lastActivityTime,
    Duration managerAge,
    boolean cleanupScheduled,
    long outboxMessages,
    long outboxBytes) {}
