package sidecar

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

// SendToUser sends one message to the context that the token opens. Repeated by itself where that is safe: the message's
// id stays the same. Options: ExpectedUserID, WaitForAck, Timeout.
func (c *Client) SendToUser(
	ctx context.Context, isolationKey, contextToken string, message Message, options ...CallOption,
) (Receipt, error) {
	s := callSettingsFrom(options)
	built, failed := message.build()
	if failed == nil {
		failed = checkAddress(isolationKey, contextToken, s.expectedUserID)
	}
	if failed != nil {
		return Receipt{}, failed
	}
	answer, err := run(ctx, c, &s, unary[apiv1.SendToUserRequest, apiv1.SendToUserResponse]{
		method: c.delivery.SendToUser,
		token:  contextToken,
		request: &apiv1.SendToUserRequest{
			IsolationKey:   isolationKey,
			Message:        built,
			WaitForAck:     s.waitForAck(),
			ExpectedUserId: s.expectedUserID,
		},
	})
	if err != nil {
		return Receipt{}, err
	}
	return receiptFrom(answer.GetReceipt()), nil
}

// EmitCriticalEvent sends one critical event: never dropped for another, sent again until the client acknowledges it.
// data is any value that encoding/json can encode; json.RawMessage for what is encoded already. Scope emit. Options:
// MessageID, ExpectedUserID, WaitForAck, Timeout.
func (c *Client) EmitCriticalEvent(
	ctx context.Context, isolationKey, contextToken, eventType string, data any, options ...CallOption,
) (Receipt, error) {
	s := callSettingsFrom(options)
	if s.messageID == "" {
		s.messageID = newMessageID()
	}
	encoded, failed := encodeJSON(data, "data")
	if failed == nil {
		failed = (&Message{ID: s.messageID, EventType: eventType}).checkTexts()
	}
	if failed == nil {
		failed = checkAddress(isolationKey, contextToken, s.expectedUserID)
	}
	if failed != nil {
		return Receipt{}, failed
	}
	answer, err := run(ctx, c, &s, unary[apiv1.EmitCriticalEventRequest, apiv1.EmitCriticalEventResponse]{
		method: c.delivery.EmitCriticalEvent,
		token:  contextToken,
		request: &apiv1.EmitCriticalEventRequest{
			IsolationKey:   isolationKey,
			EventType:      eventType,
			Data:           encoded,
			MessageId:      s.messageID,
			WaitForAck:     s.waitForAck(),
			ExpectedUserId: s.expectedUserID,
		},
	})
	if err != nil {
		return Receipt{}, err
	}
	return receiptFrom(answer.GetReceipt()), nil
}

// BatchItem is one message of a batch and the context token (a secret) that it goes by.
type BatchItem struct {
	IsolationKey   string
	ContextToken   string
	Message        Message
	ExpectedUserID string
}

// String tells where it goes, and no token.
func (item BatchItem) String() string { return "sidecar.BatchItem(" + item.IsolationKey + ")" }

// GoString is String: the token is a secret.
func (item BatchItem) GoString() string { return item.String() }

// LogValue is String: the token is a secret.
func (item BatchItem) LogValue() slog.Value { return slog.StringValue(item.String()) }

// BatchResult is what became of one item: a receipt, or an error (an [*Error]).
type BatchResult struct {
	Receipt Receipt
	Err     error
}

// SendBatch sends at most 1,000 messages; each stands or falls alone. The results are in the items' order. Option: Timeout.
func (c *Client) SendBatch(ctx context.Context, items []BatchItem, options ...CallOption) ([]BatchResult, error) {
	s := callSettingsFrom(options)
	results := make([]BatchResult, len(items))
	request := &apiv1.SendBatchRequest{}
	sent := make([]int, 0, len(items))
	for i := range items {
		// An item that cannot be sent at all is answered in its place, and costs the others nothing.
		built, failed := items[i].build()
		if failed != nil {
			results[i].Err = failed
			continue
		}
		request.Items = append(request.Items, built)
		sent = append(sent, i)
		results[i].Err = &Error{Code: codes.Unknown, Message: "the answer says nothing of it"}
	}
	answer, err := run(ctx, c, &s, unary[apiv1.SendBatchRequest, apiv1.SendBatchResponse]{
		method: c.delivery.SendBatch, request: request,
	})
	if err != nil {
		return nil, err
	}
	for place, result := range answer.GetResults() {
		if place < len(sent) {
			results[sent[place]] = batchResultFrom(result)
		}
	}
	return results, nil
}

func (item *BatchItem) build() (*apiv1.SendBatchItem, *Error) {
	if failed := checkAddress(item.IsolationKey, item.ContextToken, item.ExpectedUserID); failed != nil {
		return nil, failed
	}
	message, failed := item.Message.build()
	return &apiv1.SendBatchItem{
		IsolationKey:   item.IsolationKey,
		ContextToken:   item.ContextToken,
		Message:        message,
		ExpectedUserId: item.ExpectedUserID,
	}, failed
}

func batchResultFrom(result *apiv1.SendBatchResult) (made BatchResult) {
	if refused := result.GetError(); refused != nil {
		made.Err = errorFromStatus(refused)
	} else {
		made.Receipt = receiptFrom(result.GetReceipt())
	}
	return made
}

// Broadcast sends one message to every context of the token's own user or tenant. Scope broadcast:user or
// broadcast:tenant. Idempotent by the message's id in each context. Option: Timeout.
func (c *Client) Broadcast(
	ctx context.Context, contextToken string, scope BroadcastScope, message Message, options ...CallOption,
) (BroadcastResult, error) {
	s := callSettingsFrom(options)
	built, failed := message.build()
	if failed != nil {
		return BroadcastResult{}, failed
	}
	answer, err := run(ctx, c, &s, unary[apiv1.BroadcastRequest, apiv1.BroadcastResponse]{
		method:  c.delivery.Broadcast,
		token:   contextToken,
		request: &apiv1.BroadcastRequest{Scope: apiv1.BroadcastScope(scope), Message: built},
	})
	return BroadcastResult{int(answer.GetManagers()), int(answer.GetConnections()), int(answer.GetRefused())}, err
}

// CloseManager ends the context; it returns how many sockets that had. Scope close. Options: CloseCode, Timeout.
func (c *Client) CloseManager(
	ctx context.Context, isolationKey, contextToken string, options ...CallOption,
) (connections int, err error) {
	s := callSettingsFrom(options)
	if failed := checkAddress(isolationKey, contextToken, s.closeReason); failed != nil {
		return 0, failed
	}
	answer, err := run(ctx, c, &s, unary[apiv1.CloseManagerRequest, apiv1.CloseManagerResponse]{
		method:  c.delivery.CloseManager,
		token:   contextToken,
		request: &apiv1.CloseManagerRequest{IsolationKey: isolationKey, Code: s.closeCode, Reason: s.closeReason},
		once:    true,
	})
	return int(answer.GetConnections()), err
}

// GetManagerStats reads the context's counters. Scope stats. Option: Timeout.
func (c *Client) GetManagerStats(
	ctx context.Context, isolationKey, contextToken string, options ...CallOption,
) (ManagerStats, error) {
	s := callSettingsFrom(options)
	if failed := checkAddress(isolationKey, contextToken, ""); failed != nil {
		return ManagerStats{}, failed
	}
	answer, err := run(ctx, c, &s, unary[apiv1.GetManagerStatsRequest, apiv1.GetManagerStatsResponse]{
		method:  c.delivery.GetManagerStats,
		token:   contextToken,
		request: &apiv1.GetManagerStatsRequest{IsolationKey: isolationKey},
	})
	if err != nil {
		return ManagerStats{}, err
	}
	return ManagerStats{
		ConnectionsManaged:  int(answer.GetConnectionsManaged()),
		MessagesSentTotal:   answer.GetMessagesSentTotal(),
		MessagesFailedTotal: answer.GetMessagesFailedTotal(),
		LastActivityTime:    answer.GetLastActivityTime().AsTime(),
		ManagerAge:          time.Duration(answer.GetManagerAgeSeconds() * float64(time.Second)),
		CleanupScheduled:    answer.GetCleanupScheduled(),
		OutboxMessages:      answer.GetOutboxMessages(),
		OutboxBytes:         answer.GetOutboxBytes(),
	}, nil
}

func (s *callSettings) waitForAck() *durationpb.Duration {
	if !s.holds {
		return nil
	}
	return durationpb.New(s.hold)
}
