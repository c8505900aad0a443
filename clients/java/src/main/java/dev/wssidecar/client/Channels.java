package dev.wssidecar.client;

import io.grpc.ChannelCredentials;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.EventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.MultiThreadIoEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.nio.NioIoHandler;
import io.grpc.netty.shaded.io.netty.channel.socket.nio.NioDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.util.concurrent.DefaultThreadFactory;
import java.net.UnixDomainSocketAddress;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;

/** How a channel to the sidecar is set up. */
final class Channels {
  private static final int MAX_ANSWER_BYTES = 4 * 1_048_576;

  /** A channel, and what has to be shut down behind it. */
  record Opened(ManagedChannel channel, Runnable release) {}

  private Channels() {}

  /** A channel that connects when it is first used. */
  static Opened open(Settings settings) {
    ChannelCredentials credentials =
        settings.credentials() == null ? InsecureChannelCredentials.create() : settings.credentials();
    return settings.endpoint().startsWith(Settings.UNIX)
        ? openUnix(settings.endpoint().substring(Settings.UNIX.length()), credentials)
        : openTcp(settings.endpoint(), credentials);
  }

  private static Opened openTcp(String endpoint, ChannelCredentials credentials) {
    int colon = endpoint.lastIndexOf(':');
    String host = endpoint.substring(0, colon);
    boolean bracketed = host.startsWith("[") && host.endsWith("]");
    String name = bracketed ? host.substring(1, host.length() - 1) : host;
    int port = Integer.parseInt(endpoint.substring(colon + 1));
    NettyChannelBuilder builder = NettyChannelBuilder.forAddress(name, port, credentials);
    return new Opened(configured(builder).build(), () -> {});
  }

  /** The JDK's own Unix sockets (JEP 380), which need no native library. */
  private static Opened openUnix(String path, ChannelCredentials credentials) {
    String plain = path.startsWith("//") ? path.substring(2) : path;
    EventLoopGroup loops =
        new MultiThreadIoEventLoopGroup(
            1, new DefaultThreadFactory("sidecar-unix", true), NioIoHandler.newFactory());
    NettyChannelBuilder builder =
        NettyChannelBuilder.forAddress(UnixDomainSocketAddress.of(Path.of(plain)), credentials)
            .eventLoopGroup(loops)
            .channelType(NioDomainSocketChannel.class, UnixDomainSocketAddress.class)
            .overrideAuthority("localhost");
    return new Opened(
        configured(builder).build(), () -> loops.shutdownGracefully(0, 1, TimeUnit.SECONDS));
  }

  private static NettyChannelBuilder configured(NettyChannelBuilder builder) {
    return builder
        // A connection that a network or a stopped process holds open is found out within 20 s. The sidecar takes pings
        // every 10 s, with or without calls.
        .keepAliveTime(10, TimeUnit.SECONDS)
        .keepAliveTimeout(10, TimeUnit.SECONDS)
        .keepAliveWithoutCalls(true)
        .maxInboundMessageSize(MAX_ANSWER_BYTES)
        // Retries that a service config could ask for are not wanted: they know nothing of RetryInfo.
        .disableServiceConfigLookUp()
        // Tokens do not go through somebody's proxy to a sidecar on the same host.
        .proxyDetector(target -> null)
        .userAgent("ws-sidecar-client-java/" + SidecarClient.VERSION);
  }
}
