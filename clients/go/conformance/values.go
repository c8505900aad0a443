package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	sidecar "ws-sidecar.dev/client"
)

// named are things by the names that the driver gives them.
type named[Thing any] struct {
	mu     sync.Mutex
	things map[string]Thing
}

func newNamed[Thing any]() *named[Thing] { return &named[Thing]{things: make(map[string]Thing)} }

func (n *named[Thing]) put(name string, thing Thing) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.things[name] = thing
}

func (n *named[Thing]) get(name string) (Thing, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	thing, ok := n.things[name]
	if !ok {
		return thing, fmt.Errorf("nothing is called %q", name)
	}
	return thing, nil
}

func (n *named[Thing]) all() []Thing {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]Thing, 0, len(n.things))
	for _, thing := range n.things {
		all = append(all, thing)
	}
	return all
}

// message is one as the driver writes it.
type message struct {
	JSON          json.RawMessage   `json:"json"`
	Text          *string           `json:"text"`
	Binary        *[]byte           `json:"binary"`
	EventType     string            `json:"event_type"`
	MessageID     string            `json:"message_id"`
	TTLSeconds    *float64          `json:"ttl_s"`
	Headers       map[string]string `json:"headers"`
	Critical      bool              `json:"critical"`
	ReplyTo       string            `json:"reply_to"`
	MinDurability string            `json:"min_durability"`
	Stream        *struct {
		StreamID string `json:"stream_id"`
		Index    uint64 `json:"index"`
		State    string `json:"state"`
	} `json:"stream"`
}

func (m *message) content() sidecar.Message {
	switch {
	case m.Text != nil:
		return sidecar.Text(*m.Text)
	case m.Binary != nil:
		return sidecar.Binary(*m.Binary)
	}
	return sidecar.JSON(m.JSON)
}

func (m *message) build() sidecar.Message {
	made := m.content()
	made.ID, made.EventType, made.ReplyTo = m.MessageID, m.EventType, m.ReplyTo
	made.Headers, made.Critical = m.Headers, m.Critical
	if m.TTLSeconds != nil {
		// In Go no TTL is 0; what the sidecar says to 0 it says to less.
		made.TTL = seconds(*m.TTLSeconds)
		if made.TTL == 0 {
			made.TTL = -1
		}
	}
	for _, each := range []sidecar.Durability{sidecar.Memory, sidecar.Disk, sidecar.Replicated} {
		if each.String() == m.MinDurability {
			made.MinDurability = each
		}
	}
	if m.Stream != nil {
		made.Stream = &sidecar.StreamPlace{StreamID: m.Stream.StreamID, Index: m.Stream.Index}
		for _, each := range []sidecar.StreamState{sidecar.StreamOpen, sidecar.StreamEnd, sidecar.StreamError} {
			if strings.EqualFold(each.String(), m.Stream.State) {
				made.Stream.State = each
			}
		}
	}
	return made
}

func seconds(count float64) time.Duration { return time.Duration(count * float64(time.Second)) }

func unix(at time.Time) float64 { return float64(at.UnixNano()) / 1e9 }

func receiptOf(receipt sidecar.Receipt) map[string]any {
	return map[string]any{
		"message_id":    receipt.MessageID,
		"sequence":      receipt.Sequence,
		"state":         receipt.State.String(),
		"durability":    receipt.Durability.String(),
		"connections":   receipt.Connections,
		"duplicate":     receipt.Duplicate,
		"accepted_time": unix(receipt.AcceptedTime),
	}
}

func userOf(user sidecar.UserContext) map[string]any {
	return map[string]any{
		"tenant_id":     user.TenantID,
		"user_id":       user.UserID,
		"session_id":    user.SessionID,
		"connection_id": user.ConnectionID,
		"request_id":    user.RequestID,
		"created_time":  unix(user.CreatedTime),
		"permissions":   append([]string{}, user.Permissions...),
		"metadata":      orEmpty(user.Metadata),
	}
}

func orEmpty(metadata map[string]string) map[string]string {
	if metadata == nil {
		return map[string]string{}
	}
	return metadata
}

// outcomeOf is one of many: a receipt or an error.
func outcomeOf(receipt sidecar.Receipt, err error) map[string]any {
	if err != nil {
		return map[string]any{"error": errorOf(err)}
	}
	return map[string]any{"receipt": receiptOf(receipt)}
}

func receiptOr(receipt sidecar.Receipt, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return receiptOf(receipt), nil
}
