package dev.wssidecar.client;

/**
 * How far a broadcast came.
 *
 * @param managers how many managers took the message, or had before
 * @param connections how many sockets were given it before the answer was made
 * @param refused how many managers refused it, such as for a full outbox
 */
public record BroadcastResult(int managers, int connections, int refused) {}
