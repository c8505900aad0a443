package dev.wssidecar.client;

import io.grpc.ChannelCredentials;
import java.time.Duration;
import java.util.Map;
import java.util.function.DoubleSupplier;

/** How to reach the sidecar: what was given, then what the environment says, then the defaults. Opens nothing. */
record Settings(
    String endpoint,
    String serviceToken,
    ChannelCredentials credentials,
    Duration timeout,
    int maxAttempts,
    DoubleSupplier uniform) {

  static final String ENDPOINT_VARIABLE = "SIDECAR_GRPC_ENDPOINT";
  static final String SERVICE_TOKEN_VARIABLE = "SIDECAR_SERVICE_TOKEN";
  static final String DEFAULT_ENDPOINT = "127.0.0.1:50051";
  static final Duration DEFAULT_TIMEOUT = Duration.ofSeconds(5);
  static final int DEFAULT_MAX_ATTEMPTS = 4;
  static final String UNIX = "unix:";

  Settings {
    if (!endpoint.startsWith(UNIX) && !endpoint.matches(".+:\\d{1,5}")) {
      throw new IllegalArgumentException("endpoint is host:port or unix:/path");
    }
    if (timeout.isNegative() || timeout.isZero()) {
      throw new IllegalArgumentException("timeout is more than 0");
    }
    if (maxAttempts < 1) {
      throw new IllegalArgumentException("maxAttempts is at least 1");
    }
  }

  /** Null for what was not given. */
  static Settings of(
      String endpoint,
      String serviceToken,
      ChannelCredentials credentials,
      Duration timeout,
      int maxAttempts,
      DoubleSupplier uniform,
      Map<String, String> environment) {
    String named = endpoint == null ? environment.getOrDefault(ENDPOINT_VARIABLE, "") : endpoint;
    String token =
        serviceToken == null ? environment.getOrDefault(SERVICE_TOKEN_VARIABLE, "") : serviceToken;
    return new Settings(
        named.isEmpty() ? DEFAULT_ENDPOINT : named,
        token,
        credentials,
        timeout == null ? DEFAULT_TIMEOUT : timeout,
        maxAttempts,
        uniform);
  }

  @Override
  public String toString() {
    return "Settings[endpoint=" + endpoint + "]";
  }
}
