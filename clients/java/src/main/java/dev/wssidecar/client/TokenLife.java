package dev.wssidecar.client;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Base64;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * How long a context token lives in all, by its own claims (RFC 7519 §4.1). From one clock, the sidecar's: how far it
 * is from this one does not matter. Nothing is verified here, and nothing depends on it but when a refresh is asked
 * for.
 */
final class TokenLife {
  /** For a token that does not say: it is not refreshed. */
  static final Duration UNKNOWN = Duration.ZERO;

  private static final Pattern ISSUED = Pattern.compile("\"iat\"\\s*:\\s*(\\d{1,15})");
  private static final Pattern EXPIRES = Pattern.compile("\"exp\"\\s*:\\s*(\\d{1,15})");

  private TokenLife() {}

  static Duration of(String token) {
    String[] parts = token.split("\\.", -1);
    if (parts.length != 3) {
      return UNKNOWN;
    }
    try {
      String claims = new String(Base64.getUrlDecoder().decode(parts[1]), StandardCharsets.UTF_8);
      Matcher issued = ISSUED.matcher(claims);
      Matcher expires = EXPIRES.matcher(claims);
      if (!issued.find() || !expires.find()) {
        return UNKNOWN;
      }
      return Duration.ofSeconds(Long.parseLong(expires.group(1)) - Long.parseLong(issued.group(1)));
    } catch (IllegalArgumentException notBase64) {
      return UNKNOWN;
    }
  }
}
