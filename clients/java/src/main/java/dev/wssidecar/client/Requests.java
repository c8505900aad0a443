package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.SidecarExceptions;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import sidecar.api.v1.BroadcastRequest;
import sidecar.api.v1.BroadcastResponse;
import sidecar.api.v1.CloseManagerRequest;
import sidecar.api.v1.CloseManagerResponse;
import sidecar.api.v1.ContextServiceGrpc;
import sidecar.api.v1.DeliveryServiceGrpc;
import sidecar.api.v1.EmitCriticalEventRequest;
import sidecar.api.v1.EmitCriticalEventResponse;
import sidecar.api.v1.ExchangeContextTokenRequest;
import sidecar.api.v1.ExchangeContextTokenResponse;
import sidecar.api.v1.GetContextRequest;
import sidecar.api.v1.GetContextResponse;
import sidecar.api.v1.GetManagerStatsRequest;
import sidecar.api.v1.GetManagerStatsResponse;
import sidecar.api.v1.RefreshContextTokenRequest;
import sidecar.api.v1.RefreshContextTokenResponse;
import sidecar.api.v1.RevokeContextTokenRequest;
import sidecar.api.v1.RevokeContextTokenResponse;
import sidecar.api.v1.SendBatchItem;
import sidecar.api.v1.SendBatchRequest;
import sidecar.api.v1.SendBatchResponse;
import sidecar.api.v1.SendBatchResult;
import sidecar.api.v1.SendToUserRequest;
import sidecar.api.v1.SendToUserResponse;

/** Every unary call: the method, the request, the metadata and how to read the answer. Opens nothing. */
final class Requests {
  private Requests() {}

  static UnaryCall<SendToUserRequest, SendToUserResponse, Receipt> sendToUser(
      Recipient to, Message message, Duration waitForAck) {
    SendToUserRequest.Builder request =
        SendToUserRequest.newBuilder()
            .setIsolationKey(to.isolationKey())
            .setMessage(message.toProto())
            .setExpectedUserId(to.expectedUserId());
    if (waitForAck != null) {
      request.setWaitForAck(Protos.duration(waitForAck, "wait_for_ack"));
    }
    return UnaryCall.<SendToUserRequest, SendToUserResponse, Receipt>repeatable(
            DeliveryServiceGrpc.getSendToUserMethod(),
            request.build(),
            Tokens.forContext(to.contextToken()),
            answer -> Protos.receipt(answer.getReceipt()))
        .held(waitForAck);
  }

  static UnaryCall<EmitCriticalEventRequest, EmitCriticalEventResponse, Receipt> emitCriticalEvent(
      Recipient to, CriticalEvent event, Duration waitForAck) {
    String messageId = event.messageId().isEmpty() ? Texts.newId() : event.messageId();
    EmitCriticalEventRequest.Builder request =
        EmitCriticalEventRequest.newBuilder()
            .setIsolationKey(to.isolationKey())
            .setEventType(event.eventType())
            .setData(Texts.utf8(event.json(), "data"))
            .setMessageId(messageId)
            .setExpectedUserId(to.expectedUserId());
    if (waitForAck != null) {
      request.setWaitForAck(Protos.duration(waitForAck, "wait_for_ack"));
    }
    return UnaryCall.<EmitCriticalEventRequest, EmitCriticalEventResponse, Receipt>repeatable(
            DeliveryServiceGrpc.getEmitCriticalEventMethod(),
            request.build(),
            Tokens.forContext(to.contextToken()),
            answer -> Protos.receipt(answer.getReceipt()))
        .held(waitForAck);
  }

  /** An item that cannot be sent at all is answered in its place, and costs the others nothing. */
  static UnaryCall<SendBatchRequest, SendBatchResponse, List<BatchResult>> sendBatch(
      List<BatchItem> items) {
    SendBatchRequest.Builder request = SendBatchRequest.newBuilder();
    List<BatchResult> refusedHere = new ArrayList<>(items.size());
    for (BatchItem item : items) {
      try {
        request.addItems(batchItem(item));
        refusedHere.add(null);
      } catch (SidecarException error) {
        refusedHere.add(new BatchResult.Refused(error));
      }
    }
    return UnaryCall.repeatable(
        DeliveryServiceGrpc.getSendBatchMethod(),
        request.build(),
        new io.grpc.Metadata(),
        answer -> merged(refusedHere, answer.getResultsList().iterator()));
  }

  private static SendBatchItem batchItem(BatchItem item) {
    Recipient to = item.recipient().checked();
    return SendBatchItem.newBuilder()
        .setIsolationKey(to.isolationKey())
        .setContextToken(to.contextToken())
        .setMessage(item.message().toProto())
        .setExpectedUserId(to.expectedUserId())
        .build();
  }

  private static List<BatchResult> merged(
      List<BatchResult> refusedHere, Iterator<SendBatchResult> answers) {
    List<BatchResult> results = new ArrayList<>(refusedHere.size());
    for (BatchResult here : refusedHere) {
      results.add(here == null ? batchResult(answers.next()) : here);
    }
    return List.copyOf(results);
  }

  private static BatchResult batchResult(SendBatchResult result) {
    return result.hasReceipt()
        ? new BatchResult.Accepted(Protos.receipt(result.getReceipt()))
        : new BatchResult.Refused(SidecarExceptions.from(result.getError()));
  }

  static UnaryCall<BroadcastRequest, BroadcastResponse, BroadcastResult> broadcast(
      String contextToken, BroadcastScope scope, Message message) {
    return UnaryCall.repeatable(
        DeliveryServiceGrpc.getBroadcastMethod(),
        BroadcastRequest.newBuilder()
            .setScope(Protos.scope(scope))
            .setMessage(message.toProto())
            .build(),
        Tokens.forContext(contextToken),
        answer ->
            new BroadcastResult(
                answer.getManagers(), answer.getConnections(), answer.getRefused()));
  }

  /** Not repeated: a second answer would be MANAGER_GONE. */
  static UnaryCall<CloseManagerRequest, CloseManagerResponse, Integer> closeManager(
      Recipient to, int code, String reason) {
    return UnaryCall.once(
        DeliveryServiceGrpc.getCloseManagerMethod(),
        CloseManagerRequest.newBuilder()
            .setIsolationKey(to.isolationKey())
            .setCode(code)
            .setReason(Texts.wellFormed(reason, "reason"))
            .build(),
        Tokens.forContext(to.contextToken()),
        CloseManagerResponse::getConnections);
  }

  static UnaryCall<GetManagerStatsRequest, GetManagerStatsResponse, ManagerStats> getManagerStats(
      Recipient of) {
    return UnaryCall.repeatable(
        DeliveryServiceGrpc.getGetManagerStatsMethod(),
        GetManagerStatsRequest.newBuilder().setIsolationKey(of.isolationKey()).build(),
        Tokens.forContext(of.contextToken()),
        Requests::stats);
  }

  private static ManagerStats stats(GetManagerStatsResponse answer) {
    return new ManagerStats(
        answer.getConnectionsManaged(),
        answer.getMessagesSentTotal(),
        answer.getMessagesFailedTotal(),
        Protos.instant(answer.getLastActivityTime()),
        Duration.ofNanos((long) (answer.getManagerAgeSeconds() * 1e9)),
        answer.getCleanupScheduled(),
        answer.getOutboxMessages(),
        answer.getOutboxBytes());
  }

  static UnaryCall<GetContextRequest, GetContextResponse, ContextFacts> getContext(
      String contextToken) {
    return UnaryCall.repeatable(
        ContextServiceGrpc.getGetContextMethod(),
        GetContextRequest.getDefaultInstance(),
        Tokens.forContext(contextToken),
        answer ->
            new ContextFacts(
                answer.getIsolationKey(),
                Protos.userContext(answer.getContext()),
                answer.getScopesList(),
                Protos.instant(answer.getExpireTime())));
  }

  /** Not repeated: each call mints another token. */
  static UnaryCall<RefreshContextTokenRequest, RefreshContextTokenResponse, ContextToken>
      refreshContextToken(String contextToken) {
    return UnaryCall.once(
        ContextServiceGrpc.getRefreshContextTokenMethod(),
        RefreshContextTokenRequest.getDefaultInstance(),
        Tokens.forContext(contextToken),
        answer ->
            new ContextToken(answer.getContextToken(), Protos.instant(answer.getExpireTime())));
  }

  /** Not repeated: a second answer would be TOKEN_REVOKED. */
  static UnaryCall<RevokeContextTokenRequest, RevokeContextTokenResponse, Void> revokeContextToken(
      String contextToken) {
    return UnaryCall.once(
        ContextServiceGrpc.getRevokeContextTokenMethod(),
        RevokeContextTokenRequest.getDefaultInstance(),
        Tokens.forContext(contextToken),
        answer -> null);
  }

  /** Not repeated: each call mints another token. */
  static UnaryCall<ExchangeContextTokenRequest, ExchangeContextTokenResponse, ContextGrant>
      exchangeContextToken(
          String userToken, String connectionId, List<String> scopes, String serviceToken) {
    return UnaryCall.once(
        ContextServiceGrpc.getExchangeContextTokenMethod(),
        ExchangeContextTokenRequest.newBuilder()
            .setUserToken(Texts.wellFormed(userToken, "user_token"))
            .setConnectionId(connectionId)
            .addAllScopes(scopes)
            .build(),
        Tokens.asService(serviceToken),
        answer ->
            new ContextGrant(
                answer.getIsolationKey(),
                new ContextToken(answer.getContextToken(), Protos.instant(answer.getExpireTime())),
                Protos.userContext(answer.getContext())));
  }
}
