package dev.wssidecar.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.wssidecar.client.errors.Refusal;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.SidecarExceptions;
import dev.wssidecar.client.errors.TransportException;
import dev.wssidecar.client.errors.UnavailableException;
import io.grpc.Status;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Map;
import java.util.OptionalLong;
import org.junit.jupiter.api.Test;
import sidecar.api.v1.ErrorReason;

/** What is decided without a sidecar. */
class ValuesTest {
  @Test
  void theVersionIsThePoms() throws IOException {
    String pom = Files.readString(Path.of("pom.xml"));
    assertTrue(
        pom.contains(
            "<artifactId>ws-sidecar-client</artifactId>\n  <version>" + SidecarClient.VERSION));
  }

  @Test
  void everyReasonOfTheCatalogueHasAClass() {
    for (ErrorReason each : ErrorReason.values()) {
      if (each == ErrorReason.UNRECOGNIZED || each == ErrorReason.ERROR_REASON_UNSPECIFIED) {
        continue;
      }
      String reason = each.name().substring("ERROR_REASON_".length());
      SidecarException error =
          SidecarExceptions.of(Refusal.of(Status.Code.UNKNOWN, reason, "said"));
      assertNotEquals(SidecarException.class, error.getClass(), reason);
      assertEquals(error.getClass(), SidecarExceptions.copyOf(error).getClass());
      boolean unsure = reason.equals("INTERNAL") || reason.equals("OUTCOME_UNKNOWN");
      assertEquals(!unsure, error.definite(), reason);
    }
  }

  @Test
  void aReasonOfALaterVersionIsReadByItsCode() {
    com.google.rpc.Status status =
        ScriptedSidecar.refusal(Status.Code.UNAVAILABLE, "MOON_UNREACHABLE", 5);
    SidecarException error = SidecarExceptions.from(status);
    assertEquals(UnavailableException.class, error.getClass());
    assertEquals("MOON_UNREACHABLE", error.reason());
    assertEquals(Duration.ofMillis(5), error.retryAfter().orElseThrow());
    assertEquals("MOON_UNREACHABLE: said MOON_UNREACHABLE", error.getMessage());
  }

  @Test
  void onlyAnUnknownMethodOfTheTransportsIsDefinite() {
    assertTrue(new TransportException(Status.Code.UNIMPLEMENTED, "").definite());
    assertFalse(new TransportException(Status.Code.UNAVAILABLE, "").definite());
  }

  @Test
  void theEnvironmentSaysWhatWasNotGiven() {
    Map<String, String> environment =
        Map.of("SIDECAR_GRPC_ENDPOINT", "unix:/run/s.sock", "SIDECAR_SERVICE_TOKEN", "secret");
    Settings settings = Settings.of(null, null, null, null, 4, () -> 0, environment);
    assertEquals("unix:/run/s.sock", settings.endpoint());
    assertEquals("secret", settings.serviceToken());
    assertEquals(Duration.ofSeconds(5), settings.timeout());
    assertFalse(settings.toString().contains("secret"));
    assertEquals("", Settings.of("h:1", "", null, null, 4, () -> 0, environment).serviceToken());
    assertEquals(
        "127.0.0.1:50051", Settings.of(null, null, null, null, 4, () -> 0, Map.of()).endpoint());
    assertThrows(
        IllegalArgumentException.class,
        () -> Settings.of("nowhere", null, null, null, 4, () -> 0, Map.of()));
  }

  @Test
  void theBackOffDoublesUpToItsCapAndAddsWhatWasAskedFor() {
    BackOff backOff = new BackOff(Duration.ofMillis(50), Duration.ofMillis(150), () -> 0.5);
    assertEquals(25_000_000, backOff.nextNanos(Duration.ZERO));
    assertEquals(50_000_000, backOff.nextNanos(Duration.ZERO));
    assertEquals(75_000_000, backOff.nextNanos(Duration.ZERO));
    assertEquals(1_075_000_000, backOff.nextNanos(Duration.ofSeconds(1)));
    backOff.reset();
    assertEquals(25_000_000, backOff.nextNanos(Duration.ZERO));
  }

  @Test
  void whatIsNotRepeatableIsTriedOnce() {
    SidecarException lost = new TransportException(Status.Code.UNAVAILABLE, "");
    BackOff backOff = new BackOff(Duration.ofMillis(50), Duration.ofSeconds(2), () -> 0);
    assertEquals(OptionalLong.empty(), new Retries(false, 100, 4, backOff).waitNanos(lost, 0));
    long pause = Retries.RECONNECT.toNanos();
    assertEquals(OptionalLong.of(pause), new Retries(true, pause + 1, 4, backOff).waitNanos(lost, 0));
    assertEquals(OptionalLong.empty(), new Retries(true, pause + 1, 4, backOff).waitNanos(lost, 1));
  }

  @Test
  void aDurationHasOneSignInBothParts() {
    com.google.protobuf.Duration span = Protos.duration(Duration.ofMillis(-1_500), "ttl");
    assertEquals(-1, span.getSeconds());
    assertEquals(-500_000_000, span.getNanos());
    assertThrows(
        SidecarException.class, () -> Protos.duration(Duration.ofSeconds(Long.MAX_VALUE), "ttl"));
  }

  @Test
  void aTokenThatSaysNothingOfItsLifeIsLeftAlone() {
    assertEquals(Duration.ZERO, TokenLife.of("no token"));
    assertEquals(Duration.ZERO, TokenLife.of("a.!!!.c"));
    assertEquals(Duration.ZERO, TokenLife.of("a.e30.c"));
  }
}
