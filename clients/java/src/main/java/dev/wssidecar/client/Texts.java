package dev.wssidecar.client;

import com.google.protobuf.ByteString;
import dev.wssidecar.client.errors.SidecarExceptions;
import java.security.SecureRandom;
import java.util.HexFormat;
import java.util.concurrent.ThreadLocalRandom;

/** Texts as the contract wants them: well-formed UTF-8, and ids that are made up. */
final class Texts {
  /** This process among others; what follows it is random within the process. */
  private static final String PROCESS = HexFormat.of().toHexDigits(new SecureRandom().nextLong());

  private Texts() {}

  /** A message_id of 32 hexadecimal digits: unique, no secret. */
  static String newId() {
    return PROCESS.concat(HexFormat.of().toHexDigits(ThreadLocalRandom.current().nextLong()));
  }

  /** The text in UTF-8. */
  static ByteString utf8(String text, String field) {
    return ByteString.copyFromUtf8(wellFormed(text, field));
  }

  /** Throws BAD_REQUEST for a lone surrogate, which Java would silently turn into a question mark. */
  static String wellFormed(String text, String field) {
    boolean inPair = false;
    for (int at = 0; at < text.length(); at++) {
      char unit = text.charAt(at);
      if (inPair != Character.isLowSurrogate(unit)) {
        throw SidecarExceptions.badRequest(field, "a text is UTF-8");
      }
      inPair = Character.isHighSurrogate(unit);
    }
    if (inPair) {
      throw SidecarExceptions.badRequest(field, "a text is UTF-8");
    }
    return text;
  }
}
