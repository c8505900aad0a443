package dev.wssidecar.client;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.propagation.TextMapSetter;

/**
 * Hands the caller's trace on to the sidecar (W3C Trace Context). Only the current context is read: the global instance of
 * OpenTelemetry, which may be set but once, is left alone. Loaded only where its API is there.
 */
final class TraceInterceptor implements ClientInterceptor {
  private static final TextMapSetter<Metadata> SETTER =
      (metadata, name, value) ->
          metadata.put(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value);

  @Override
  public <Q, A> ClientCall<Q, A> interceptCall(
      MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
    ClientCall<Q, A> call = next.newCall(method, options);
    if (!Span.current().getSpanContext().isValid()) {
      return call;
    }
    Context context = Context.current();
    return new SimpleForwardingClientCall<>(call) {
      @Override
      public void start(Listener<A> listener, Metadata headers) {
        W3CTraceContextPropagator.getInstance().inject(context, headers, SETTER);
        super.start(listener, headers);
      }
    };
  }
}
