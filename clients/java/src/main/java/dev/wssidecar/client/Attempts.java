package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.SidecarExceptions;
import dev.wssidecar.client.errors.TransportException;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.OptionalLong;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;

/** One unary call, made until it is answered, given up or out of time. */
final class Attempts<Q, A, T> {
  private final Link link;
  private final UnaryCall<Q, A, T> call;
  private final long deadline;
  private final Retries retries;
  private final Outcome<T> outcome = new Outcome<>();

  private Attempts(Link link, UnaryCall<Q, A, T> call, long timeoutNanos) {
    this.link = link;
    this.call = call;
    this.deadline = System.nanoTime() + timeoutNanos;
    Settings settings = link.settings();
    BackOff backOff = new BackOff(BackOff.BASE, BackOff.CAP, settings.uniform());
    this.retries = new Retries(call.repeatable(), deadline, settings.maxAttempts(), backOff);
  }

  /** The answer, to be. Cancelled, the call is; it may have been taken. */
  static <Q, A, T> CompletableFuture<T> run(Link link, UnaryCall<Q, A, T> call, long timeoutNanos) {
    Attempts<Q, A, T> attempts = new Attempts<>(link, call, timeoutNanos + call.held().toNanos());
    link.enter(attempts.outcome);
    attempts.attempt();
    return attempts.outcome;
  }

  private void attempt() {
    if (outcome.isDone()) {
      return;
    }
    long left = Math.max(deadline - System.nanoTime(), 1_000_000L);
    CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(left, TimeUnit.NANOSECONDS);
    ClientCall<Q, A> attempt = link.channel().newCall(call.method(), options);
    outcome.whenCancelled(() -> attempt.cancel("the caller wants no answer any more", null));
    Metadata headers = new Metadata();
    headers.merge(call.metadata());
    attempt.start(new Listener(), headers);
    attempt.request(2); // one answer, and its end at once
    attempt.sendMessage(call.request());
    attempt.halfClose();
  }

  private void failed(SidecarException error) {
    if (link.closed()) {
      outcome.completeExceptionally(
          new TransportException(Status.Code.CANCELLED, "the client was closed"));
      return;
    }
    OptionalLong wait = retries.waitNanos(error, System.nanoTime());
    if (wait.isEmpty()) {
      outcome.completeExceptionally(error);
      return;
    }
    try {
      link.timer().schedule(this::attempt, wait.getAsLong(), TimeUnit.NANOSECONDS);
    } catch (RejectedExecutionException closed) {
      outcome.completeExceptionally(error);
    }
  }

  private final class Listener extends ClientCall.Listener<A> {
    private A answer;

    @Override
    public void onMessage(A message) {
      answer = message;
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      if (status.isOk() && answer != null) {
        outcome.complete(call.read().apply(answer));
      } else if (status.isOk()) {
        failed(new TransportException(Status.Code.INTERNAL, "an OK without an answer"));
      } else {
        failed(SidecarExceptions.from(status, trailers));
      }
    }
  }
}
