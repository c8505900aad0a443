/**
 * The Java client of ws-sidecar: a service reaches one user's connection context, and no other.
 *
 * <p>{@link dev.wssidecar.client.Agent} takes what users say and answers them. {@link dev.wssidecar.client.SidecarClient}
 * sends with a token that came with a request, {@link dev.wssidecar.client.Sender} sends many messages fast. Everything
 * may be used by many threads at once.
 */
package dev.wssidecar.client;
