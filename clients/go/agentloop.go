package sidecar

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

const (
	attachBase = 100 * time.Millisecond
	attachCap  = 10 * time.Second
	// attachStable is how long an attachment lives that was a success: the back-off begins again.
	attachStable = 5 * time.Second
)

// agentLoop is what an agent does while it runs: attach, again after every break; take events in; stop in order.
type agentLoop struct {
	agent      *Agent
	client     *Client
	ownsClient bool
	sender     *Sender
	dispatcher *dispatcher
	refresh    *tokenRefresh
	pause      *backOff

	base     context.Context // of the handlers: it has the values of Run's, and no end
	serving  context.Context // of what refreshes
	end      context.CancelFunc
	calling  context.Context // of what attaches
	hangUp   context.CancelFunc
	running  sync.WaitGroup
	stream   atomic.Pointer[agentStream] // nil while there is none
	stopping atomic.Bool
	stopOnce sync.Once
	grace    context.Context
	noGrace  context.CancelFunc
	over     chan struct{} // closed when it attaches no more
	denied   chan struct{} // closed when that is because the sidecar has refused it
	stopped  chan struct{} // closed when all is over
	refused  *Error        // what the sidecar refused for good; read it after `over` or `denied`

	mu       sync.Mutex
	memory   *agentMemory
	contexts map[string]weak.Pointer[AgentContext] // as their holders know them
	attached chan struct{}                         // closed while registered
}

func newAgentLoop(a *Agent, ctx context.Context, ownsClient bool) *agentLoop {
	made := &agentLoop{
		agent:      a,
		client:     a.client,
		ownsClient: ownsClient,
		pause:      newBackOff(attachBase, attachCap),
		base:       context.WithoutCancel(ctx),
		over:       make(chan struct{}),
		denied:     make(chan struct{}),
		stopped:    make(chan struct{}),
		memory:     newAgentMemory(maxRemembered),
		contexts:   make(map[string]weak.Pointer[AgentContext]),
		attached:   make(chan struct{}),
	}
	made.serving, made.end = context.WithCancel(made.base)
	made.calling, made.hangUp = context.WithCancel(made.serving)
	made.grace, made.noGrace = context.WithCancel(made.base)
	made.sender = a.client.Sender(OnStreamCancelled(func(said StreamCancellation) {
		made.cancel(said.IsolationKey, said.StreamID, said.ReplyTo)
	}))
	made.dispatcher = newDispatcher(made.onRoom, made.acknowledge, a.registration.patience(), a.logger())
	made.refresh = newTokenRefresh(func(ctx context.Context, token string) (ContextToken, error) {
		return made.client.RefreshContextToken(ctx, token)
	}, a.logger())
	return made
}

func (l *agentLoop) start() {
	l.running.Go(func() { l.refresh.run(l.serving) })
	l.running.Go(func() {
		defer close(l.over)
		if l.refused = l.attach(); l.refused != nil {
			close(l.denied)
		}
	})
}

func (l *agentLoop) whenAttached() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.attached
}

func (l *agentLoop) setAttached(attached bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.attached:
		if !attached {
			l.attached = make(chan struct{})
		}
	default:
		if attached {
			close(l.attached)
		}
	}
}

// Attaching

// attach makes one Attach call after the other; it returns what no further one would change, nil when it stops.
func (l *agentLoop) attach() *Error {
	for {
		began := time.Now()
		failed := l.attachOnce()
		l.setAttached(false)
		l.giveBack()
		if failed == nil || l.stopping.Load() {
			return nil // what others were left must not come back
		}
		if l.client.isClosed() {
			return closedError("the client")
		}
		if !failed.breaks() && failed.Reason != ErrInternal {
			l.agent.logger().Error("the agent is refused", "error", failed)
			return failed
		}
		l.tell(failed)
		if time.Since(began) >= attachStable {
			l.pause.reset()
		}
		if !sleep(l.calling, nil, l.pause.next(failed.RetryAfter)) {
			return nil
		}
	}
}

// tell says once that a break is news.
func (l *agentLoop) tell(failed *Error) {
	level := slog.LevelWarn
	if l.pause.tries > 0 {
		level = slog.LevelDebug
	}
	l.agent.logger().Log(l.calling, level, "not attached; attaching again", "error", failed.name())
}

func (l *agentLoop) attachOnce() *Error {
	stream := newAgentStream(func() { l.setAttached(true) }, nil)
	stream.onEvent = func(frame *apiv1.AttachResponse_Event) { l.onEvent(stream, frame) }
	credit := 0
	l.dispatcher.inHand(func(handlers int) {
		credit = max(0, l.agent.credits-handlers)
		l.stream.Store(stream) // what is finished from here on is a credit more
	})
	defer l.stream.Store(nil)
	return stream.run(l.calling, l.client, l.agent.registration.frame(credit))
}

func (l *agentLoop) onRoom() {
	if stream := l.stream.Load(); stream != nil && !l.stopping.Load() {
		stream.more(1)
	}
}

// Events

func (l *agentLoop) onEvent(stream *agentStream, frame *apiv1.AttachResponse_Event) {
	if cancelled := frame.GetCancelled(); cancelled != nil {
		l.cancel(frame.GetIsolationKey(), cancelled.GetStreamId(), cancelled.GetMessageId())
		return
	}
	if l.stopping.Load() {
		return // it was under way when this worker left: not acknowledged, it goes to another
	}
	h := l.take(frame)
	if h == nil {
		l.dispatcher.ownAgain(frame.GetIsolationKey(), frame.GetDeliveryId())
		stream.more(1)
		return
	}
	l.dispatcher.receive(h)
}

// take is the event to be handled; nil for one that was taken before, or is of a kind that came after this version.
func (l *agentLoop) take(frame *apiv1.AttachResponse_Event) *handling {
	l.mu.Lock()
	defer l.mu.Unlock()
	user := l.contextOf(frame)
	h := l.agent.handlingOf(frame, user, l.base)
	if h == nil || !l.memory.isNew(frame.GetDeliveryId(), h.message, frame.GetRedelivered()) {
		return nil
	}
	if h.closes {
		user.ended.Store(true)
		delete(l.contexts, user.IsolationKey)
	}
	if h.message.id != "" && l.memory.cancelled.has(h.message) {
		h.answering.cancel() // it is only in the order
	}
	return h
}

// giveBack is for when it is not attached: it holds nothing back that others may have. It comes again, here or to another
// worker.
func (l *agentLoop) giveBack() {
	given := l.dispatcher.giveBack()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range given {
		l.memory.forget(h.deliveryID, h.message)
	}
}

// acknowledge says nothing while it is not attached: the event comes again then, is known, and is acknowledged.
func (l *agentLoop) acknowledge(deliveryID string) {
	if stream := l.stream.Load(); stream != nil {
		stream.acknowledge(deliveryID)
	}
}

// contextOf is the context as its holders know it, with the token that came.
func (l *agentLoop) contextOf(frame *apiv1.AttachResponse_Event) *AgentContext {
	key := frame.GetIsolationKey()
	held := l.contexts[key].Value()
	if held != nil {
		held.renew(frame.GetContextToken())
		l.refresh.keep(held)
		return held
	}
	held = &AgentContext{
		IsolationKey: key, User: userContextFrom(frame.GetContext()), client: l.client, sender: l.sender,
	}
	held.renew(frame.GetContextToken())
	l.contexts[key] = weak.Make(held)
	runtime.AddCleanup(held, l.forget, key)
	l.refresh.keep(held)
	return held
}

// forget drops what nobody holds any more; another may have come in its place.
func (l *agentLoop) forget(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.contexts[key].Value() == nil {
		delete(l.contexts, key)
	}
}

func (l *agentLoop) cancel(isolationKey, streamID, messageID string) {
	if messageID != "" {
		l.mu.Lock()
		l.memory.cancelled.add(messageName{isolationKey, messageID})
		l.mu.Unlock()
	}
	l.dispatcher.cancel(isolationKey, streamID, messageID)
}

// The end

// stop stops in order. A second call waits for the first; when the context of either ends, the grace does.
func (l *agentLoop) stop(ctx context.Context) {
	l.stopOnce.Do(func() { go l.stopInOrder() })
	select {
	case <-l.stopped:
	case <-ctx.Done():
		l.noGrace()
		<-l.stopped
	}
}

// stopInOrder leaves first, so that nobody waits for this worker's grace whom another could answer.
func (l *agentLoop) stopInOrder() {
	defer close(l.stopped)
	l.stopping.Store(true)
	l.dispatcher.leave()
	var leaving sync.WaitGroup
	leaving.Go(l.halfClose)
	l.dispatcher.finish(l.grace)
	leaving.Wait()
	l.end()
	l.running.Wait()
	l.noGrace()
	_ = l.sender.Close()
	if l.ownsClient {
		_ = l.client.Close()
	}
}

// halfClose says what is still to be said, then is attached no more; the sidecar hands on what is not acknowledged.
func (l *agentLoop) halfClose() {
	defer l.hangUp()
	stream := l.stream.Load()
	if stream == nil {
		return
	}
	select {
	case <-l.whenAttached():
	default:
		return
	}
	stream.leave()
	timer := time.NewTimer(halfCloseTimeout)
	defer timer.Stop()
	select {
	case <-l.over:
	case <-timer.C:
	}
}
