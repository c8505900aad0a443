package dev.wssidecar.examples.http;

import com.sun.net.httpserver.HttpExchange;
import java.security.SecureRandom;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ConcurrentHashMap;

/** Who is signed in: stands for the sign-in that a service has. */
final class Sessions {
  private static final String COOKIE = "session=";
  private static final int SESSION_BYTES = 32;

  private final SecureRandom random = new SecureRandom();
  private final Map<String, String> users = new ConcurrentHashMap<>();

  /** The cookie of a new session. */
  String cookieFor(String userId) {
    byte[] bytes = new byte[SESSION_BYTES];
    random.nextBytes(bytes);
    String session = Base64.getUrlEncoder().withoutPadding().encodeToString(bytes);
    users.put(session, userId);
    return COOKIE + session + "; HttpOnly; SameSite=Strict; Path=/";
  }

  /** Whose session the request's cookie names. */
  Optional<String> userOf(HttpExchange exchange) {
    List<String> headers = exchange.getRequestHeaders().getOrDefault("Cookie", List.of());
    return headers.stream()
        .flatMap(header -> List.of(header.split(";\\s*")).stream())
        .filter(cookie -> cookie.startsWith(COOKIE))
        .map(cookie -> users.get(cookie.substring(COOKIE.length())))
        .filter(user -> user != null)
        .findFirst();
  }
}
