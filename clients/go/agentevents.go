package sidecar

import (
	"context"
	"encoding/json"
	"sync"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

// Closed says why a context ended: nothing can be sent to it any more.
type Closed struct {
	Code   int    // the WebSocket close code; 0 where there was no socket to close
	Reason string // the catalogue's name of the code, or what else ended it
}

// InboundMessage is a message of a user's.
type InboundMessage struct {
	ID          string // the client's own, empty for raw clients
	Event       string // the client frame's, or `message`
	Payload     []byte
	ContentType ContentType
	Redelivered bool // it may have been handled, by this process or another

	context   *AgentContext
	answering *answering
}

// Decode reads a JSON payload into value, as json.Unmarshal does.
func (m *InboundMessage) Decode(value any) error { return json.Unmarshal(m.Payload, value) }

// Cancelled reports whether the client has said that it wants no answer any more. The handler's context has ended then,
// by ErrStreamCancelled (context.Cause).
func (m *InboundMessage) Cancelled() bool { return m.answering.cancelled() }

// Reply makes a response stream that answers the message. It ends with the handler, and fails where that returns an error
// or panics. Options: EventType, StreamID, ChunkTimeout.
func (m *InboundMessage) Reply(options ...ReplyOption) *ReplyStream {
	made := &ReplyStream{
		context:   m.context,
		answering: m.answering,
		replyTo:   m.ID,
		timeout:   replyTimeout,
		turn:      make(chan struct{}, 1),
		done:      make(chan struct{}),
	}
	made.finish = sync.OnceFunc(func() { close(made.done) })
	for _, option := range options {
		option(made)
	}
	if made.id == "" {
		made.id = newMessageID()
	}
	m.answering.add(made)
	return made
}

// ContextHandler is told of a context that was opened, is away, or is back.
type ContextHandler func(ctx context.Context, user *AgentContext) error

// ClosedHandler is told of a context that has ended.
type ClosedHandler func(ctx context.Context, user *AgentContext, closed Closed) error

// MessageHandler is handed a message of a user's. Its ctx ends when the client wants no answer any more, when the context
// ends while an answer is streamed, or when the agent stops and the grace is over.
type MessageHandler func(ctx context.Context, user *AgentContext, message *InboundMessage) error

// handlers are an agent's, by what they take; nil where there is none.
type handlers struct {
	opened, away, back ContextHandler
	closed             ClosedHandler
	messages           map[string]MessageHandler // by event; `*` is any other
}

// handlingOf is the event as its handler is called with it; nil for a kind that came after this version.
func (a *Agent) handlingOf(frame *apiv1.AttachResponse_Event, user *AgentContext, base context.Context) *handling {
	made := &handling{
		deliveryID: frame.GetDeliveryId(), key: frame.GetIsolationKey(), answering: newAnswering(base),
	}
	switch kind := frame.GetKind().(type) {
	case *apiv1.AttachResponse_Event_Opened:
		made.kind, made.handle = "opened", a.handlers.opened.of(user)
	case *apiv1.AttachResponse_Event_Away:
		made.kind, made.handle = "away", a.handlers.away.of(user)
	case *apiv1.AttachResponse_Event_Back:
		made.kind, made.handle = "back", a.handlers.back.of(user)
	case *apiv1.AttachResponse_Event_Closed:
		made.kind, made.closes = "closed", true
		made.handle = a.handlers.closed.of(user, Closed{int(kind.Closed.GetCode()), kind.Closed.GetReason()})
	case *apiv1.AttachResponse_Event_Message:
		message := inboundFrom(frame, kind.Message)
		message.context, message.answering = user, made.answering
		made.kind, made.message = "message", messageName{made.key, message.ID}
		made.handle = a.messageHandler(user, message)
	default:
		return nil
	}
	return made
}

func inboundFrom(frame *apiv1.AttachResponse_Event, said *apiv1.AttachResponse_Inbound) *InboundMessage {
	made := &InboundMessage{
		ID:          said.GetMessageId(),
		Event:       said.GetEventType(),
		Payload:     said.GetPayload(),
		ContentType: ContentType(said.GetContentType()),
		Redelivered: frame.GetRedelivered(),
	}
	if made.ContentType < ContentJSON || made.ContentType > ContentBinary {
		made.ContentType = ContentBinary // one that came after this version
	}
	return made
}

func (a *Agent) messageHandler(user *AgentContext, message *InboundMessage) func(context.Context) error {
	handler := a.handlers.messages[message.Event]
	if handler == nil {
		handler = a.handlers.messages["*"]
	}
	if handler == nil {
		return func(context.Context) error {
			a.logger().Warn("no handler takes the event", "event", message.Event)
			return nil
		}
	}
	return func(ctx context.Context) error { return handler(ctx, user, message) }
}

func (h ContextHandler) of(user *AgentContext) func(context.Context) error {
	if h == nil {
		return handledByNobody
	}
	return func(ctx context.Context) error { return h(ctx, user) }
}

func (h ClosedHandler) of(user *AgentContext, closed Closed) func(context.Context) error {
	if h == nil {
		return handledByNobody
	}
	return func(ctx context.Context) error { return h(ctx, user, closed) }
}

func handledByNobody(context.Context) error { return nil }
