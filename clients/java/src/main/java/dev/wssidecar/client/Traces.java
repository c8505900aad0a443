package dev.wssidecar.client;

import io.grpc.Channel;
import io.grpc.ClientInterceptors;

/** Whether calls carry the caller's trace: where OpenTelemetry's API is on the class path. */
final class Traces {
  private static final String API = "io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator";

  private Traces() {}

  /** The channel as it is, or with the trace in every call's metadata. */
  static Channel on(Channel channel) {
    try {
      Class.forName(API, false, Traces.class.getClassLoader());
    } catch (ClassNotFoundException absent) {
      return channel;
    }
    return ClientInterceptors.intercept(channel, new TraceInterceptor());
  }
}
