package dev.wssidecar.client;

import dev.wssidecar.client.errors.Refusal;
import dev.wssidecar.client.errors.TokenException;
import io.grpc.Metadata;
import io.grpc.Status;

/**
 * Tokens on their way into gRPC's metadata. A service hands on what a request brought it: a line break in a token must not
 * become an exception of a library's that quotes it.
 */
final class Tokens {
  private static final int MAX_CHARACTERS = 4_096;
  private static final Metadata.Key<String> CONTEXT =
      Metadata.Key.of("x-context-token", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<String> SERVICE =
      Metadata.Key.of("x-service-token", Metadata.ASCII_STRING_MARSHALLER);

  private Tokens() {}

  /** Whether gRPC can carry that token as it is: printable ASCII, no blank at an end. */
  static boolean good(String token) {
    int length = token.length();
    if (length > MAX_CHARACTERS || token.startsWith(" ") || token.endsWith(" ")) {
      return false;
    }
    return token.chars().allMatch(each -> each >= ' ' && each <= '~');
  }

  /** As the sidecar would answer, without ever naming the token. */
  static TokenException invalid() {
    return new TokenException(
        Refusal.of(Status.Code.UNAUTHENTICATED, "TOKEN_INVALID", "the token is not valid"));
  }

  /** The metadata of a call that a context token opens. */
  static Metadata forContext(String contextToken) {
    return with(CONTEXT, contextToken);
  }

  /** What says which service calls; nothing where mTLS does. */
  static Metadata asService(String serviceToken) {
    return serviceToken.isEmpty() ? new Metadata() : with(SERVICE, serviceToken);
  }

  private static Metadata with(Metadata.Key<String> key, String token) {
    if (!good(token)) {
      throw invalid();
    }
    Metadata metadata = new Metadata();
    metadata.put(key, token);
    return metadata;
  }
}
