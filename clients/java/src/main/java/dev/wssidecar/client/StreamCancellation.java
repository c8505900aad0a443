package dev.wssidecar.client;

/**
 * A client wants no more of a response stream, or of the answer to a message of its own; one may be empty.
 *
 * @param isolationKey the client's context
 * @param streamId the response stream
 * @param replyTo the client's own message
 */
public record StreamCancellation(String isolationKey, String streamId, String replyTo) {}
