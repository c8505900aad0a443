package dev.wssidecar.client;

import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.protobuf.Timestamp;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Context;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.BindException;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.BiConsumer;
import sidecar.api.v1.AgentServiceGrpc;
import sidecar.api.v1.AttachRequest;
import sidecar.api.v1.AttachResponse;
import sidecar.api.v1.CloseManagerRequest;
import sidecar.api.v1.CloseManagerResponse;
import sidecar.api.v1.ContextServiceGrpc;
import sidecar.api.v1.DeliverRequest;
import sidecar.api.v1.DeliverResponse;
import sidecar.api.v1.DeliveryServiceGrpc;
import sidecar.api.v1.DeliveryState;
import sidecar.api.v1.Durability;
import sidecar.api.v1.ExchangeContextTokenRequest;
import sidecar.api.v1.ExchangeContextTokenResponse;
import sidecar.api.v1.Receipt;
import sidecar.api.v1.RefreshContextTokenRequest;
import sidecar.api.v1.RefreshContextTokenResponse;
import sidecar.api.v1.SendToUserRequest;
import sidecar.api.v1.SendToUserResponse;

/** A sidecar on loopback that does what a test says, and remembers what it was asked. */
final class ScriptedSidecar implements AutoCloseable {
  static final Metadata.Key<String> SERVICE_TOKEN = key("x-service-token");
  static final Metadata.Key<String> CONTEXT_TOKEN = key("x-context-token");
  static final Metadata.Key<String> TRACE = key("traceparent");
  private static final Context.Key<Metadata> HEADERS = Context.key("headers");

  /** Answers to SendToUser, first come first; when they are used up, a receipt. */
  final Queue<BiConsumer<SendToUserRequest, StreamObserver<SendToUserResponse>>> answers =
      new ConcurrentLinkedQueue<>();

  final List<SendToUserRequest> sent = new CopyOnWriteArrayList<>();
  final List<Metadata> headers = new CopyOnWriteArrayList<>();
  final List<String> refreshed = new CopyOnWriteArrayList<>();

  /** The Deliver streams and Attach calls, as they are opened. */
  final BlockingQueue<Stream<DeliverRequest, DeliverResponse>> delivers =
      new LinkedBlockingQueue<>();

  final BlockingQueue<Stream<AttachRequest, AttachResponse>> attaches = new LinkedBlockingQueue<>();
  volatile int closes;

  /** What RefreshContextToken is refused with; null: it is not. */
  volatile StatusRuntimeException refreshRefusal;

  private final Server server;

  ScriptedSidecar() throws IOException {
    this(0);
  }

  ScriptedSidecar(int port) throws IOException {
    server =
        NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", port))
            .permitKeepAliveWithoutCalls(true)
            .addService(new Delivery())
            .addService(new ContextTokens())
            .addService(new Agents())
            .intercept(new Remembering())
            .build()
            .start();
  }

  String endpoint() {
    return endpoint(server.getPort());
  }

  static String endpoint(int port) {
    return "127.0.0.1:" + port;
  }

  /** For a sidecar that comes later: none of those that the kernel hands to whoever asks for any. */
  static int freePort() throws IOException {
    for (int tries = 0; tries < 100; tries++) {
      int port = ThreadLocalRandom.current().nextInt(20_000, 32_768);
      try (ServerSocket probe = new ServerSocket()) {
        probe.bind(new InetSocketAddress("127.0.0.1", port));
        return port;
      } catch (BindException taken) {
        // Another, then.
      }
    }
    throw new IOException("no port is free");
  }

  SidecarClient.Builder client() {
    return SidecarClient.builder().endpoint(endpoint()).serviceToken("the-service").uniform(() -> 0);
  }

  Stream<DeliverRequest, DeliverResponse> nextDeliver() throws InterruptedException {
    return taken(delivers);
  }

  Stream<AttachRequest, AttachResponse> nextAttach() throws InterruptedException {
    return taken(attaches);
  }

  static <T> T taken(BlockingQueue<T> queue) throws InterruptedException {
    T next = queue.poll(10, TimeUnit.SECONDS);
    if (next == null) {
      throw new AssertionError("nothing came");
    }
    return next;
  }

  @Override
  public void close() {
    server.shutdownNow();
    try {
      server.awaitTermination(5, TimeUnit.SECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  // What a test answers

  static Receipt receipt(String messageId, long sequence, DeliveryState state) {
    return Receipt.newBuilder()
        .setMessageId(messageId)
        .setSequence(sequence)
        .setState(state)
        .setDurability(Durability.DURABILITY_MEMORY)
        .setAcceptedTime(Timestamp.newBuilder().setSeconds(1_700_000_000))
        .build();
  }

  static com.google.rpc.Status refusal(Status.Code code, String reason, long retryMillis) {
    com.google.rpc.Status.Builder status =
        com.google.rpc.Status.newBuilder()
            .setCode(code.value())
            .setMessage("said " + reason)
            .addDetails(
                Any.pack(ErrorInfo.newBuilder().setDomain("sidecar").setReason(reason).build()));
    if (retryMillis >= 0) {
      Duration delay = Protos.duration(java.time.Duration.ofMillis(retryMillis), "retry_delay");
      status.addDetails(Any.pack(RetryInfo.newBuilder().setRetryDelay(delay).build()));
    }
    return status.build();
  }

  static StatusRuntimeException error(Status.Code code, String reason, long retryMillis) {
    return StatusProto.toStatusRuntimeException(refusal(code, reason, retryMillis));
  }

  /** SendToUser fails so, once. */
  void failNext(StatusRuntimeException error) {
    answers.add((request, observer) -> observer.onError(error));
  }

  /** One stream of a client's: what it says, and what is said to it. */
  static final class Stream<Q, A> implements StreamObserver<Q> {
    final BlockingQueue<Q> frames = new LinkedBlockingQueue<>();
    final BlockingQueue<String> ends = new LinkedBlockingQueue<>();
    private final StreamObserver<A> out;

    Stream(StreamObserver<A> out) {
      this.out = out;
    }

    Q next() throws InterruptedException {
      return taken(frames);
    }

    synchronized void say(A answer) {
      out.onNext(answer);
    }

    void fail(StatusRuntimeException error) {
      out.onError(error);
    }

    void complete() {
      out.onCompleted();
    }

    @Override
    public void onNext(Q frame) {
      frames.add(frame);
    }

    @Override
    public void onError(Throwable error) {
      ends.add("cancelled");
    }

    @Override
    public void onCompleted() {
      ends.add("half-closed");
    }
  }

  private static Metadata.Key<String> key(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  private final class Delivery extends DeliveryServiceGrpc.DeliveryServiceImplBase {
    @Override
    public void sendToUser(SendToUserRequest request, StreamObserver<SendToUserResponse> observer) {
      sent.add(request);
      BiConsumer<SendToUserRequest, StreamObserver<SendToUserResponse>> answer = answers.poll();
      if (answer != null) {
        answer.accept(request, observer);
        return;
      }
      observer.onNext(
          SendToUserResponse.newBuilder()
              .setReceipt(
                  receipt(
                      request.getMessage().getMessageId(),
                      sent.size(),
                      DeliveryState.DELIVERY_STATE_WRITTEN))
              .build());
      observer.onCompleted();
    }

    @Override
    public StreamObserver<DeliverRequest> deliver(StreamObserver<DeliverResponse> observer) {
      Stream<DeliverRequest, DeliverResponse> stream = new Stream<>(observer);
      delivers.add(stream);
      return stream;
    }

    @Override
    public void closeManager(
        CloseManagerRequest request, StreamObserver<CloseManagerResponse> observer) {
      closes++;
      observer.onError(error(Status.Code.UNAVAILABLE, "DRAINING", 1));
    }
  }

  private final class ContextTokens extends ContextServiceGrpc.ContextServiceImplBase {
    @Override
    public void refreshContextToken(
        RefreshContextTokenRequest request,
        StreamObserver<RefreshContextTokenResponse> observer) {
      refreshed.add(HEADERS.get().get(CONTEXT_TOKEN));
      if (refreshRefusal != null) {
        observer.onError(refreshRefusal);
        return;
      }
      observer.onNext(
          RefreshContextTokenResponse.newBuilder()
              .setContextToken("renewed-" + refreshed.size())
              .build());
      observer.onCompleted();
    }

    @Override
    public void exchangeContextToken(
        ExchangeContextTokenRequest request,
        StreamObserver<ExchangeContextTokenResponse> observer) {
      observer.onNext(ExchangeContextTokenResponse.getDefaultInstance());
      observer.onCompleted();
    }
  }

  private final class Agents extends AgentServiceGrpc.AgentServiceImplBase {
    @Override
    public StreamObserver<AttachRequest> attach(StreamObserver<AttachResponse> observer) {
      Stream<AttachRequest, AttachResponse> stream = new Stream<>(observer);
      attaches.add(stream);
      return stream;
    }
  }

  private final class Remembering implements ServerInterceptor {
    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, A> call, Metadata metadata, ServerCallHandler<Q, A> next) {
      headers.add(metadata);
      return io.grpc.Contexts.interceptCall(
          Context.current().withValue(HEADERS, metadata), call, metadata, next);
    }
  }
}
