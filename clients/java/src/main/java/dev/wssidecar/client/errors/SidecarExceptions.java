package dev.wssidecar.client.errors;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.function.Function;

/** How what the sidecar or the transport answers becomes an exception of the one tree. */
public final class SidecarExceptions {
  private static final String DOMAIN = "sidecar";

  private static final Map<String, Function<Refusal, SidecarException>> BY_REASON =
      Map.ofEntries(
          Map.entry("TOKEN_MISSING", TokenException::new),
          Map.entry("TOKEN_INVALID", TokenException::new),
          Map.entry("TOKEN_EXPIRED", TokenException::new),
          Map.entry("TOKEN_REVOKED", TokenException::new),
          Map.entry("ISOLATION_VIOLATION", IsolationViolationException::new),
          Map.entry("SCOPE_MISSING", ScopeMissingException::new),
          Map.entry("SERVICE_DENIED", ServiceDeniedException::new),
          Map.entry("MANAGER_GONE", ManagerGoneException::new),
          Map.entry("OUTBOX_FULL", OutboxFullException::new),
          Map.entry("USER_LIMIT", UserLimitException::new),
          Map.entry("RATE_LIMITED", RateLimitedException::new),
          Map.entry("MESSAGE_ID_REUSED", MessageIdReusedException::new),
          Map.entry("SUBSCRIPTION_TAKEN", SubscriptionTakenException::new),
          Map.entry("BAD_REQUEST", BadRequestException::new),
          Map.entry("DURABILITY_UNAVAILABLE", DurabilityUnavailableException::new),
          Map.entry("STREAM_CANCELLED", StreamCancelledException::new),
          Map.entry("STREAM_ENDED", StreamEndedException::new),
          Map.entry("STREAM_OUT_OF_ORDER", StreamOutOfOrderException::new),
          Map.entry("LANE_NOT_OPEN", LaneNotOpenException::new),
          Map.entry("DRAINING", DrainingException::new),
          Map.entry("CLUSTER_UNAVAILABLE", ClusterUnavailableException::new),
          Map.entry("STORAGE_UNAVAILABLE", StorageUnavailableException::new),
          Map.entry("AUDIT_UNAVAILABLE", AuditUnavailableException::new),
          Map.entry("UNSUPPORTED", UnsupportedException::new),
          Map.entry("OUTCOME_UNKNOWN", OutcomeUnknownException::new),
          Map.entry("INTERNAL", InternalException::new),
          Map.entry("NO_AGENT", NoAgentException::new),
          Map.entry("AGENT_BUSY", AgentBusyException::new));

  /** For reasons that came after this version. */
  private static final Map<Status.Code, Function<Refusal, SidecarException>> BY_CODE =
      Map.of(
          Status.Code.UNAUTHENTICATED, TokenException::new,
          Status.Code.PERMISSION_DENIED, PermissionDeniedException::new,
          Status.Code.RESOURCE_EXHAUSTED, ResourceExhaustedException::new,
          Status.Code.ALREADY_EXISTS, AlreadyExistsException::new,
          Status.Code.INVALID_ARGUMENT, BadRequestException::new,
          Status.Code.FAILED_PRECONDITION, FailedPreconditionException::new,
          Status.Code.UNAVAILABLE, UnavailableException::new,
          Status.Code.UNIMPLEMENTED, UnsupportedException::new,
          Status.Code.INTERNAL, InternalException::new);

  private SidecarExceptions() {}

  /**
   * What a failed call says.
   *
   * @param status its status
   * @param trailers what came with it; null for none
   * @return the exception
   */
  public static SidecarException from(Status status, Metadata trailers) {
    try {
      com.google.rpc.Status details = StatusProto.fromStatusAndTrailers(status, trailers);
      if (details != null) {
        return from(details);
      }
    } catch (IllegalArgumentException mismatch) {
      // A proxy's status beside the sidecar's details: believe neither.
    }
    String description = status.getDescription();
    return new TransportException(status.getCode(), description == null ? "" : description);
  }

  /**
   * What a google.rpc.Status says: of a call, of an item of a batch or of a lane.
   *
   * @param status the status
   * @return the exception
   */
  public static SidecarException from(com.google.rpc.Status status) {
    Details details = new Details();
    status.getDetailsList().forEach(details::read);
    Status.Code code = Status.fromCodeValue(status.getCode()).getCode();
    if (details.info == null || !details.info.getDomain().equals(DOMAIN)) {
      return new TransportException(
          new Refusal(code, "", status.getMessage(), details.retryAfter, "", List.of()));
    }
    String incidentId = details.info.getMetadataOrDefault("incident_id", "");
    return of(
        new Refusal(
            code,
            details.info.getReason(),
            status.getMessage(),
            details.retryAfter,
            incidentId,
            details.violations));
  }

  /**
   * The exception of a refusal's reason, else of its code.
   *
   * @param refusal what was answered
   * @return the exception
   */
  public static SidecarException of(Refusal refusal) {
    Function<Refusal, SidecarException> make = BY_REASON.get(refusal.reason());
    if (make == null) {
      make = BY_CODE.getOrDefault(refusal.code(), SidecarException::new);
    }
    return make.apply(refusal);
  }

  /**
   * The same outcome for another caller, with a stack trace of its own.
   *
   * @param error what happened
   * @return an exception of the same class
   */
  public static SidecarException copyOf(SidecarException error) {
    return error instanceof TransportException
        ? new TransportException(error.refusal())
        : of(error.refusal());
  }

  /**
   * What the sidecar would have answered; said here because it could not even be asked.
   *
   * @param field the field at fault
   * @param rule the rule that it breaks
   * @return the exception
   */
  public static BadRequestException badRequest(String field, String rule) {
    return new BadRequestException(
        new Refusal(
            Status.Code.INVALID_ARGUMENT,
            "BAD_REQUEST",
            "the request is not valid",
            null,
            "",
            List.of(new Refusal.Violation(field, rule))));
  }

  /** The details of a status, as far as they are known here and whole. */
  private static final class Details {
    private ErrorInfo info;
    private Duration retryAfter;
    private List<Refusal.Violation> violations = List.of();

    private void read(Any detail) {
      try {
        if (detail.is(ErrorInfo.class)) {
          info = detail.unpack(ErrorInfo.class);
        } else if (detail.is(RetryInfo.class)) {
          com.google.protobuf.Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
          retryAfter = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
        } else if (detail.is(BadRequest.class)) {
          violations =
              detail.unpack(BadRequest.class).getFieldViolationsList().stream()
                  .map(each -> new Refusal.Violation(each.getField(), each.getDescription()))
                  .toList();
        }
      } catch (InvalidProtocolBufferException broken) {
        // A detail that somebody on the way broke says nothing.
      }
    }
  }
}
