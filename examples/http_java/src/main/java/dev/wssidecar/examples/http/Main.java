package dev.wssidecar.examples.http;

import com.sun.net.httpserver.HttpServer;
import dev.wssidecar.client.SidecarClient;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** Serves the example on loopback; prints where. */
public final class Main {
  private static final int DEFAULT_PORT = 8000;
  private static final int THREADS = 32;

  private Main() {}

  /**
   * Serves until the process is ended.
   *
   * @param arguments the port; 0 is any
   * @throws IOException when it cannot listen
   */
  public static void main(String[] arguments) throws IOException {
    int port = arguments.length > 0 ? Integer.parseInt(arguments[0]) : DEFAULT_PORT;
    SidecarClient client = SidecarClient.create();
    ExecutorService threads = Executors.newFixedThreadPool(THREADS);
    HttpServer server =
        HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), 0);
    new Service(client, threads).addTo(server);
    server.setExecutor(threads);
    Runtime.getRuntime()
        .addShutdownHook(
            new Thread(
                () -> {
                  server.stop(0);
                  threads.shutdownNow();
                  client.close();
                }));
    server.start();
    System.out.println("listening on http://127.0.0.1:" + server.getAddress().getPort());
  }
}
