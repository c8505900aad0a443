package dev.wssidecar.client;

import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import java.time.Duration;
import java.util.function.Function;

/**
 * One call to be made.
 *
 * @param repeatable the sidecar takes it once, however often it is sent
 * @param held how long the sidecar may hold the answer; the deadline is later by as much
 */
record UnaryCall<Q, A, T>(
    MethodDescriptor<Q, A> method,
    Q request,
    Metadata metadata,
    Function<A, T> read,
    boolean repeatable,
    Duration held) {

  static <Q, A, T> UnaryCall<Q, A, T> repeatable(
      MethodDescriptor<Q, A> method, Q request, Metadata metadata, Function<A, T> read) {
    return new UnaryCall<>(method, request, metadata, read, true, Duration.ZERO);
  }

  /** Of which a second one is another. */
  static <Q, A, T> UnaryCall<Q, A, T> once(
      MethodDescriptor<Q, A> method, Q request, Metadata metadata, Function<A, T> read) {
    return new UnaryCall<>(method, request, metadata, read, false, Duration.ZERO);
  }

  UnaryCall<Q, A, T> held(Duration wait) {
    return new UnaryCall<>(
        method, request, metadata, read, repeatable, wait == null ? Duration.ZERO : wait);
  }

  /** Says nothing of the request and its metadata: there are tokens in both. */
  @Override
  public String toString() {
    return "UnaryCall[" + method.getFullMethodName() + "]";
  }
}
