package sidecar

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

// Message is one message to one user. [JSON], [Text] and [Binary] make it; what else is to be said of it are its fields.
//
// Identifiers are 1 to 128 characters of `A-Z a-z 0-9 _ . : @ | -`.
type Message struct {
	// ID is an identifier, the idempotency key. Default: made up, so that a call may always be repeated.
	ID string
	// EventType is an identifier: what kind of message this is, for the client to dispatch on.
	EventType string
	// Payload is the content, read as ContentType says. Do not change it while the message is on its way.
	Payload []byte
	// ContentType is how the payload is to be read. Default: ContentJSON.
	ContentType ContentType
	// TTL is how long it is kept for a client that is away, at most a day. Default: the sidecar's.
	TTL time.Duration
	// Headers are handed to the client beside the payload: at most 32.
	Headers map[string]string
	// MinDurability refuses it (ErrDurabilityUnavailable) unless the store gives at least this.
	MinDurability Durability
	// Critical messages are never dropped for another, and kept as long as their manager. Scope emit; JSON only.
	Critical bool
	// ReplyTo is an identifier: the client's message that this answers.
	ReplyTo string
	// Stream is its place in a response stream. Default: it is no part of one.
	Stream *StreamPlace

	err *Error // why there is no payload: the send says it
}

// JSON is a message of any value that encoding/json can encode. One that it cannot is refused, ErrBadRequest, when it is
// sent.
func JSON(value any) Message {
	payload, err := encodeJSON(value, "message.payload")
	return Message{Payload: payload, ContentType: ContentJSON, err: err}
}

// Text is a message of UTF-8 text.
func Text(text string) Message { return Message{Payload: []byte(text), ContentType: ContentText} }

// Binary is a message of any bytes.
func Binary(data []byte) Message { return Message{Payload: data, ContentType: ContentBinary} }

// encodeJSON is one RFC 8259 value, with `<`, `>` and `&` as they are: it does not go into a page's source.
func encodeJSON(value any, field string) ([]byte, *Error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if encoder.Encode(value) != nil {
		return nil, badRequest(field, "exactly one JSON value")
	}
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n")), nil
}

// newMessageID is 32 random hexadecimal digits.
func newMessageID() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand
	return hex.EncodeToString(random[:])
}

// build is the protobuf message, always with a message_id.
func (m *Message) build() (*apiv1.Message, *Error) {
	if m.err != nil {
		return nil, m.err
	}
	built := &apiv1.Message{
		MessageId:     m.ID,
		EventType:     m.EventType,
		Payload:       m.Payload,
		ContentType:   apiv1.ContentType(m.ContentType),
		Headers:       m.Headers,
		MinDurability: apiv1.Durability(m.MinDurability),
		Critical:      m.Critical,
		ReplyTo:       m.ReplyTo,
	}
	if built.MessageId == "" {
		built.MessageId = newMessageID()
	}
	if m.TTL != 0 {
		built.Ttl = durationpb.New(m.TTL)
	}
	if m.Stream != nil {
		built.Stream = m.Stream.build()
	}
	return built, m.checkTexts()
}

func (p *StreamPlace) build() *apiv1.Stream {
	return &apiv1.Stream{StreamId: p.StreamID, Index: p.Index, State: apiv1.StreamState(p.State)}
}

// checkTexts refuses what no protobuf string can hold: on a stream it would cost everybody's messages.
func (m *Message) checkTexts() *Error {
	good := utf8.ValidString(m.ID) && utf8.ValidString(m.EventType) && utf8.ValidString(m.ReplyTo)
	for name, value := range m.Headers {
		good = good && utf8.ValidString(name) && utf8.ValidString(value)
	}
	if m.Stream != nil {
		good = good && utf8.ValidString(m.Stream.StreamID)
	}
	if !good {
		return badRequest("message", "a text is UTF-8")
	}
	return nil
}

// checkAddress refuses what no request can hold of whom a message is for.
func checkAddress(isolationKey, contextToken, expectedUserID string) *Error {
	if !utf8.ValidString(isolationKey) || !utf8.ValidString(expectedUserID) {
		return badRequest("isolation_key", "a text is UTF-8")
	}
	return checkToken(contextToken)
}
