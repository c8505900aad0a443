package sidecar

import "container/list"

const maxRemembered = 10_000

// recent is so many names at most, the latest.
type recent[Name comparable] struct {
	most  int
	names map[Name]*list.Element
	order *list.List // of Name, oldest first
}

func newRecent[Name comparable](most int) *recent[Name] {
	return &recent[Name]{most: most, names: make(map[Name]*list.Element), order: list.New()}
}

func (r *recent[Name]) has(name Name) bool { return r.names[name] != nil }

// add remembers the name; the oldest goes.
func (r *recent[Name]) add(name Name) {
	if r.has(name) {
		return
	}
	r.names[name] = r.order.PushBack(name)
	if r.order.Len() > r.most {
		delete(r.names, r.order.Remove(r.order.Front()).(Name))
	}
}

// discard forgets the name, where it is known.
func (r *recent[Name]) discard(name Name) {
	if place := r.names[name]; place != nil {
		delete(r.names, name)
		r.order.Remove(place)
	}
}

// messageName is a client's own id of a message, in its context.
type messageName struct{ isolationKey, id string }

// agentMemory is which events this process has taken, and which messages were cancelled before they came.
type agentMemory struct {
	taken     *recent[string]
	messages  *recent[messageName]
	cancelled *recent[messageName]
}

func newAgentMemory(most int) *agentMemory {
	return &agentMemory{newRecent[string](most), newRecent[messageName](most), newRecent[messageName](most)}
}

// isNew reports whether this process takes that event for the first time; from then on it is known.
//
// A delivery id lasts as long as the sidecar's process. A message that a store kept over its end comes under another one,
// marked; it is known by the client's own id. name is empty for what is no message, or has no id.
func (m *agentMemory) isNew(deliveryID string, name messageName, redelivered bool) bool {
	known := m.taken.has(deliveryID) || redelivered && name.id != "" && m.messages.has(name)
	m.taken.add(deliveryID)
	if name.id != "" {
		m.messages.add(name)
	}
	return !known
}

// forget is for what was not begun: it is new when it comes again.
func (m *agentMemory) forget(deliveryID string, name messageName) {
	m.taken.discard(deliveryID)
	m.messages.discard(name)
}
