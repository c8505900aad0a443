package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// cancelTimeout is how long a handler may take to end once it is cancelled.
const cancelTimeout = 10 * time.Second

// handling is one event, from its receipt to the end of its handler.
type handling struct {
	kind       string // for people
	deliveryID string
	message    messageName
	key        string
	closes     bool // the context has ended with it
	answering  *answering
	handle     func(ctx context.Context) error

	ours     bool        // it is acknowledged; guarded by the dispatcher, as is
	patience *time.Timer // nil unless it waits for its turn and is not acknowledged
}

// stopWaiting is for when its turn has come, or will not: a timer that has fired already finds nothing to say.
func (h *handling) stopWaiting() {
	if h.patience != nil {
		h.patience.Stop()
		h.patience = nil
	}
}

// answering is one handler at work: whether it is still wanted, and the streams that it has open.
type answering struct {
	ctx context.Context
	end context.CancelCauseFunc

	mu      sync.Mutex
	unwant  bool
	streams map[string]*ReplyStream
}

func newAnswering(base context.Context) *answering {
	made := &answering{streams: make(map[string]*ReplyStream)}
	made.ctx, made.end = context.WithCancelCause(base)
	return made
}

func streamCancelled() *Error {
	return refusal(codes.FailedPrecondition, ErrStreamCancelled, "the client has cancelled the stream")
}

// cancel is for when the client wants no more: the handler's context ends. Idempotent.
func (a *answering) cancel() {
	a.mu.Lock()
	a.unwant = true
	a.mu.Unlock()
	a.end(streamCancelled())
}

// cancelled reports whether the client has said that it wants no more.
func (a *answering) cancelled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.unwant
}

func (a *answering) add(stream *ReplyStream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.streams[stream.ID()] = stream
}

func (a *answering) remove(stream *ReplyStream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.streams[stream.ID()] == stream {
		delete(a.streams, stream.ID())
	}
	stream.finish()
}

func (a *answering) has(streamID string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.streams[streamID] != nil
}

func (a *answering) open() []*ReplyStream {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := make([]*ReplyStream, 0, len(a.streams))
	for _, stream := range a.streams {
		found = append(found, stream)
	}
	return found
}

// dispatcher decides who handles what, when: the events of one context one after the other, different contexts side by
// side. What waits for its context holds no place that another context could have: a user who asks much holds up nobody
// else. It stays the sidecar's until it is begun, or has waited for long: another worker has it when this one stops or is
// lost, and the sidecar's own bound tells a client that asks too much (AGENT_BUSY).
type dispatcher struct {
	onRoom      func()                  // for each event received, when another may be in its place
	acknowledge func(deliveryID string) // when its handler begins, or after
	patience    time.Duration
	logger      *slog.Logger

	mu       sync.Mutex
	running  map[string]*handling
	waiting  map[string][]*handling // by context, where one of it is running
	idle     chan struct{}          // closed when nothing runs
	stopping bool
}

func newDispatcher(
	onRoom func(), acknowledge func(deliveryID string), patience time.Duration, logger *slog.Logger,
) *dispatcher {
	made := &dispatcher{
		onRoom:      onRoom,
		acknowledge: acknowledge,
		patience:    patience,
		logger:      logger,
		running:     make(map[string]*handling),
		waiting:     make(map[string][]*handling),
		idle:        make(chan struct{}),
	}
	close(made.idle)
	return made
}

// inHand is how many contexts have a handler running. Until `with` returns there are no more and no fewer.
func (d *dispatcher) inHand(with func(handlers int)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	with(len(d.running))
}

// receive handles an event when those of its context before it have been.
func (d *dispatcher) receive(h *handling) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopping {
		return // not acknowledged, it goes to another worker
	}
	first := d.running[h.key]
	if first != nil && h.closes && len(first.answering.open()) > 0 {
		first.answering.cancel() // nobody is there to read its answer any more; other work goes on
	}
	if first == nil {
		d.begin(h)
		return
	}
	h.patience = time.AfterFunc(d.patience, func() { d.waitedLong(h) })
	d.waiting[h.key] = append(d.waiting[h.key], h)
	d.onRoom()
}

// waitedLong acknowledges what still waits: the sidecar would take the context from this worker. What is before it has
// waited for longer, though its timer may come later.
func (d *dispatcher) waitedLong(h *handling) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.patience == nil {
		return
	}
	for _, each := range d.waiting[h.key] {
		d.own(each)
		if each == h {
			return
		}
	}
}

// own says that the event is this process's. Said once.
func (d *dispatcher) own(h *handling) {
	h.stopWaiting()
	if !h.ours {
		h.ours = true
		d.acknowledge(h.deliveryID)
	}
}

// ownAgain acknowledges an event that came again: where it waits, it is this process's now. Where the dispatcher takes no
// more nothing is said: what waited was given back, and goes to another worker.
func (d *dispatcher) ownAgain(isolationKey, deliveryID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopping {
		return
	}
	for _, h := range d.waiting[isolationKey] {
		if h.deliveryID == deliveryID {
			h.stopWaiting()
			h.ours = true
		}
	}
	d.acknowledge(deliveryID)
}

// begin starts a goroutine for a context that has none.
func (d *dispatcher) begin(h *handling) {
	if len(d.running) == 0 {
		d.idle = make(chan struct{})
	}
	d.own(h)
	d.running[h.key] = h
	go func() {
		for h := h; h != nil; h = d.done(h) {
			d.run(h)
		}
	}()
}

// done puts the next of its context in the place of h; where there is none, another context may have it.
func (d *dispatcher) done(h *handling) *handling {
	d.mu.Lock()
	defer d.mu.Unlock()
	if queue := d.waiting[h.key]; len(queue) > 0 {
		next := queue[0]
		d.waiting[h.key] = queue[1:]
		d.own(next)
		d.running[h.key] = next
		return next
	}
	delete(d.running, h.key)
	delete(d.waiting, h.key)
	if len(d.running) == 0 {
		close(d.idle)
	}
	d.onRoom()
	return nil
}

func (d *dispatcher) run(h *handling) {
	defer h.answering.end(context.Canceled)
	if h.answering.cancelled() {
		return // nobody wants an answer, and none was begun
	}
	err := d.guarded(h)
	if failed := h.answering.finish(err); err == nil {
		err = failed
	}
	switch {
	case err == nil, err == errPanic, h.answering.ctx.Err() != nil && errors.Is(err, context.Canceled):
	case errors.Is(err, ErrManagerGone), errors.Is(err, ErrStreamCancelled):
		d.logger.Debug("nobody is there for the answer any more", "event", h.kind)
	default:
		d.logger.Error("a handler failed", "event", h.kind, "error", err)
	}
}

// errPanic stands for a panic's value, which may hold anything.
var errPanic = errors.New("the handler panicked")

// guarded calls the handler; one that panics ends nothing else.
func (d *dispatcher) guarded(h *handling) (err error) {
	defer func() {
		if value := recover(); value != nil {
			d.logger.Error("a handler panicked", "event", h.kind, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return h.handle(h.answering.ctx)
}

// cancel is for when the client wants no more of a stream, or of the answer to a message.
func (d *dispatcher) cancel(isolationKey, streamID, messageID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	of := d.waiting[isolationKey]
	if running := d.running[isolationKey]; running != nil {
		of = append([]*handling{running}, of...)
	}
	for _, h := range of {
		if messageID != "" && h.message.id == messageID || streamID != "" && h.answering.has(streamID) {
			h.answering.cancel()
		}
	}
}

// giveBack returns what waits and is not acknowledged: it comes again, here or to another worker, and is not begun any more.
func (d *dispatcher) giveBack() (given []*handling) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, queue := range d.waiting {
		d.waiting[key] = slices.DeleteFunc(queue, func(h *handling) bool {
			if !h.ours {
				h.stopWaiting()
				given = append(given, h)
			}
			return !h.ours
		})
	}
	return given
}

// leave takes no more, and gives back.
func (d *dispatcher) leave() {
	d.mu.Lock()
	d.stopping = true
	d.mu.Unlock()
	d.giveBack()
}

// finish lets what is left be handled until ctx ends, then cancels it.
func (d *dispatcher) finish(ctx context.Context) {
	if !d.awaitIdle(ctx.Done()) {
		d.logger.Warn("handlers did not end within their grace")
	}
	d.mu.Lock()
	clear(d.waiting) // what waits is not begun
	for _, h := range d.running {
		h.answering.end(context.Canceled)
	}
	d.mu.Unlock()
	over, cancel := context.WithTimeout(context.Background(), cancelTimeout)
	defer cancel()
	if !d.awaitIdle(over.Done()) {
		d.logger.Error("handlers do not end though they were cancelled")
	}
}

// awaitIdle returns true when nothing runs, false when `over` is closed before.
func (d *dispatcher) awaitIdle(over <-chan struct{}) bool {
	d.mu.Lock()
	idle := d.idle
	d.mu.Unlock()
	select {
	case <-idle:
		return true
	default:
	}
	select {
	case <-idle:
		return true
	case <-over:
		return false
	}
}
