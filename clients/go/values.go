package sidecar

import (
	"log/slog"
	"time"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

// ContentType is how a payload is to be read.
type ContentType int32

const (
	ContentJSON   ContentType = 1 // exactly one RFC 8259 value; its bytes reach the client unchanged
	ContentText   ContentType = 2 // UTF-8 text
	ContentBinary ContentType = 3 // any bytes
)

// String is the contract's word in the frames of clients: json, text or binary.
func (c ContentType) String() string { return wordOf(int32(c), "json", "text", "binary") }

// DeliveryState is how far a message has come when the answer is made.
type DeliveryState int32

const (
	Queued       DeliveryState = 1 // in the outbox, not yet written
	Written      DeliveryState = 2 // given to the live primary socket's transport, no more than that
	Acknowledged DeliveryState = 3 // the client acknowledged it
	Dropped      DeliveryState = 4 // it expired unwritten, or was announced to the client as part of a gap
)

// String is the contract's word, such as ACKNOWLEDGED.
func (s DeliveryState) String() string {
	return wordOf(int32(s), "QUEUED", "WRITTEN", "ACKNOWLEDGED", "DROPPED")
}

// Durability is what an accepted message survives.
type Durability int32

const (
	Memory     Durability = 1 // lost when the sidecar ends
	Disk       Durability = 2 // in the sidecar's local store, synced to disk
	Replicated Durability = 3 // held by a quorum of the cluster
)

// String is the contract's word, such as DISK.
func (d Durability) String() string { return wordOf(int32(d), "MEMORY", "DISK", "REPLICATED") }

// StreamState is where a chunk stands in its response stream.
type StreamState int32

const (
	StreamOpen  StreamState = 1 // a chunk before the last
	StreamEnd   StreamState = 2 // the last chunk
	StreamError StreamState = 3 // the last chunk of a stream that failed
)

// String is the contract's word in the frames of clients: open, end or error.
func (s StreamState) String() string { return wordOf(int32(s), "open", "end", "error") }

// BroadcastScope is whom a broadcast reaches.
type BroadcastScope int32

const (
	BroadcastUser   BroadcastScope = 1 // every context of the token's own user
	BroadcastTenant BroadcastScope = 2 // every context of the token's own tenant
)

func wordOf(number int32, words ...string) string {
	if 1 <= number && int(number) <= len(words) {
		return words[number-1]
	}
	return "UNSPECIFIED"
}

// Receipt is what an OK says about a message.
type Receipt struct {
	MessageID    string
	Sequence     uint64 // its place in the order of its connection context: from 1, without holes
	State        DeliveryState
	Durability   Durability
	Connections  int       // how many sockets were given the message before the answer was made
	Duplicate    bool      // accepted before: the first receipt but for the state, and nothing was delivered now
	AcceptedTime time.Time // by the sidecar's clock
}

// StreamPlace is a message's place in a response stream.
type StreamPlace struct {
	StreamID string
	Index    uint64      // 0 for the first chunk, then rising by one
	State    StreamState // default: StreamOpen
}

// UserContext is who a connection context belongs to.
type UserContext struct {
	TenantID     string
	UserID       string
	SessionID    string
	ConnectionID string
	RequestID    string
	CreatedTime  time.Time
	Permissions  []string
	Metadata     map[string]string
}

// ContextToken is a context token. Text is a secret: printing the value does not show it.
type ContextToken struct {
	Text       string
	ExpireTime time.Time
}

// String tells when it ends, not what it is.
func (t ContextToken) String() string { return "ContextToken(until " + t.ExpireTime.String() + ")" }

// GoString is String: %#v shows no secret either.
func (t ContextToken) GoString() string { return t.String() }

// LogValue is String: a log shows no secret either.
func (t ContextToken) LogValue() slog.Value { return slog.StringValue(t.String()) }

// ContextGrant is what an exchange gives: the token, the isolation key that it opens, and whose it is.
type ContextGrant struct {
	IsolationKey string
	Token        ContextToken
	Context      UserContext
}

// ContextFacts is what a context token opens.
type ContextFacts struct {
	IsolationKey string
	Context      UserContext
	Scopes       []string
	ExpireTime   time.Time
}

// BroadcastResult is how far a broadcast came.
type BroadcastResult struct {
	Managers    int // how many took the message, or had before
	Connections int // how many sockets were given it
	Refused     int // how many managers refused it
}

// ManagerStats are the counters of one manager.
type ManagerStats struct {
	ConnectionsManaged  int
	MessagesSentTotal   uint64
	MessagesFailedTotal uint64
	LastActivityTime    time.Time
	ManagerAge          time.Duration
	CleanupScheduled    bool
	OutboxMessages      uint64
	OutboxBytes         uint64
}

// receiptFrom reads a receipt. A state or durability that came after this version is read as the least.
func receiptFrom(said *apiv1.Receipt) Receipt {
	return Receipt{
		MessageID:    said.GetMessageId(),
		Sequence:     said.GetSequence(),
		State:        known(DeliveryState(said.GetState()), Queued, Dropped),
		Durability:   known(Durability(said.GetDurability()), Memory, Replicated),
		Connections:  int(said.GetConnections()),
		Duplicate:    said.GetDuplicate(),
		AcceptedTime: said.GetAcceptedTime().AsTime(),
	}
}

func known[T ~int32](value, least, most T) T {
	if value < least || value > most {
		return least
	}
	return value
}

func userContextFrom(said *apiv1.UserContext) UserContext {
	return UserContext{
		TenantID:     said.GetTenantId(),
		UserID:       said.GetUserId(),
		SessionID:    said.GetSessionId(),
		ConnectionID: said.GetConnectionId(),
		RequestID:    said.GetRequestId(),
		CreatedTime:  said.GetCreatedTime().AsTime(),
		Permissions:  said.GetPermissions(),
		Metadata:     said.GetMetadata(),
	}
}
