package dev.wssidecar.client;

import dev.wssidecar.client.errors.TransportException;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.Arrays;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;

/**
 * Waits until the sidecar serves, which need not have been started yet: grpc.health.v1's Watch, by its bytes, so that no
 * further library is needed for one number.
 */
final class Readiness {
  private static final byte[] THE_WHOLE = {}; // HealthCheckRequest for the empty service name
  private static final byte[] SERVING = {0x08, 0x01}; // HealthCheckResponse: field 1, varint, SERVING
  private static final MethodDescriptor<byte[], byte[]> WATCH =
      MethodDescriptor.<byte[], byte[]>newBuilder()
          .setType(MethodDescriptor.MethodType.SERVER_STREAMING)
          .setFullMethodName("grpc.health.v1.Health/Watch")
          .setRequestMarshaller(new Bytes())
          .setResponseMarshaller(new Bytes())
          .build();

  private final Link link;
  private final long deadline;
  private final BackOff backOff;
  private final Outcome<Void> outcome = new Outcome<>();

  private Readiness(Link link, Duration timeout) {
    this.link = link;
    this.deadline = System.nanoTime() + timeout.toNanos();
    this.backOff = new BackOff(BackOff.BASE, BackOff.CAP, link.settings().uniform());
  }

  static CompletableFuture<Void> await(Link link, Duration timeout) {
    Readiness readiness = new Readiness(link, timeout);
    link.enter(readiness.outcome);
    readiness.watch();
    return readiness.outcome;
  }

  private void watch() {
    if (outcome.isDone()) {
      return;
    }
    long left = Math.max(deadline - System.nanoTime(), 1_000_000L);
    CallOptions options =
        CallOptions.DEFAULT.withWaitForReady().withDeadlineAfter(left, TimeUnit.NANOSECONDS);
    ClientCall<byte[], byte[]> call = link.channel().newCall(WATCH, options);
    outcome.whenCancelled(() -> call.cancel("nobody waits any more", null));
    call.start(new Listener(call), new Metadata());
    call.request(1);
    call.sendMessage(THE_WHOLE);
    call.halfClose();
  }

  private void ended(Status status) {
    long wait = backOff.nextNanos(Duration.ZERO);
    boolean late = status.getCode() == Status.Code.DEADLINE_EXCEEDED;
    if (late || System.nanoTime() + wait - deadline >= 0) {
      notReady(status.isOk() ? Status.Code.DEADLINE_EXCEEDED : status.getCode());
      return;
    }
    try {
      link.timer().schedule(this::watch, wait, TimeUnit.NANOSECONDS);
    } catch (RejectedExecutionException closed) {
      notReady(Status.Code.CANCELLED);
    }
  }

  private void notReady(Status.Code code) {
    outcome.completeExceptionally(new TransportException(code, "the sidecar is not ready"));
  }

  private final class Listener extends ClientCall.Listener<byte[]> {
    private final ClientCall<byte[], byte[]> call;

    private Listener(ClientCall<byte[], byte[]> call) {
      this.call = call;
    }

    @Override
    public void onMessage(byte[] response) {
      if (Arrays.equals(response, SERVING)) {
        outcome.complete(null);
        call.cancel("it serves", null);
      } else {
        call.request(1);
      }
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      if (!outcome.isDone()) {
        ended(status);
      }
    }
  }

  /** Messages as the bytes that they are. */
  private static final class Bytes implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] value) {
      return new ByteArrayInputStream(value);
    }

    @Override
    public byte[] parse(InputStream stream) {
      try {
        return stream.readAllBytes();
      } catch (IOException broken) {
        throw new UncheckedIOException(broken);
      }
    }
  }
}
