/**
 * The one tree of what goes wrong: {@link dev.wssidecar.client.errors.SidecarException} and a class a reason of the
 * sidecar's catalogue; {@link dev.wssidecar.client.errors.TransportException} for what has no reason.
 */
package dev.wssidecar.client.errors;
