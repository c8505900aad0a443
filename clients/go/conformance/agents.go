package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	sidecar "ws-sidecar.dev/client"
)

// maxJobs is how much a driver may have a handler do at a time.
const maxJobs = 1_024

var errFailed = errors.New("the driver has the handler fail")

// agent is one that the driver has opened, and its events by their handles.
type agent struct {
	agent *sidecar.Agent

	mu      sync.Mutex
	events  []*event
	taken   int           // how many agent_next has given
	changed chan struct{} // closed when there are more
}

// event is one that a handler was called with. A message's handler stays at work until it is told to end.
type event struct {
	said    map[string]any
	user    *sidecar.AgentContext
	message *sidecar.InboundMessage
	ctx     context.Context
	jobs    chan func() error // what its handler is to do; an error ends it
	stream  *sidecar.ReplyStream
	over    chan struct{} // closed when the handler has returned
}

var errReturn = errors.New("the handler returns")

func openAgent(r *runner, c *sidecar.Client, a *arguments) (any, error) {
	options := []sidecar.AgentOption{sidecar.WithClient(c), sidecar.WithGrace(0)}
	if a.Credits > 0 {
		options = append(options, sidecar.WithCredits(a.Credits))
	}
	made := &agent{agent: sidecar.NewAgent(a.ServiceName, options...), changed: make(chan struct{})}
	made.handle(a.Events)
	r.agents.put(a.Agent, made)
	go func() { _ = made.agent.Run(context.Background()) }()
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	return struct{}{}, made.agent.WaitAttached(ctx)
}

// handle sets a handler for each kind of event.
func (g *agent) handle(events []string) {
	simple := func(kind string) sidecar.ContextHandler {
		return func(_ context.Context, user *sidecar.AgentContext) error {
			g.put(&event{user: user, said: said(kind, user)})
			return nil
		}
	}
	g.agent.OnOpened(simple("opened"))
	g.agent.OnAway(simple("away"))
	g.agent.OnBack(simple("back"))
	g.agent.OnClosed(func(_ context.Context, user *sidecar.AgentContext, closed sidecar.Closed) error {
		made := &event{user: user, said: said("closed", user)}
		delete(made.said, "context_token")
		made.said["code"], made.said["reason"] = closed.Code, closed.Reason
		g.put(made)
		return nil
	})
	if len(events) == 0 {
		events = []string{"*"}
	}
	for _, name := range events {
		g.agent.OnMessage(name, g.onMessage)
	}
}

func said(kind string, user *sidecar.AgentContext) map[string]any {
	return map[string]any{
		"kind":          kind,
		"isolation_key": user.IsolationKey,
		"context_token": user.ContextToken(),
		"user":          userOf(user.User),
	}
}

func (g *agent) onMessage(ctx context.Context, user *sidecar.AgentContext, message *sidecar.InboundMessage) error {
	made := &event{
		user: user, message: message, ctx: ctx, said: said("message", user),
		jobs: make(chan func() error, maxJobs), over: make(chan struct{}),
	}
	defer close(made.over)
	made.said["id"], made.said["event"] = message.ID, message.Event
	made.said["content_type"], made.said["redelivered"] = message.ContentType.String(), message.Redelivered
	switch message.ContentType {
	case sidecar.ContentJSON:
		made.said["data"] = json.RawMessage(message.Payload)
	case sidecar.ContentText:
		made.said["data"] = string(message.Payload)
	default:
		made.said["data"] = message.Payload
	}
	g.put(made)
	for {
		select {
		case job := <-made.jobs:
			if err := job(); errors.Is(err, errReturn) {
				return nil
			} else if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *agent) put(made *event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	made.said["handle"] = len(g.events)
	g.events = append(g.events, made)
	close(g.changed)
	g.changed = make(chan struct{})
}

// next is the event not yet taken.
func (g *agent) next() (any, error) {
	g.mu.Lock()
	place := g.taken
	g.taken++
	for place >= len(g.events) {
		changed := g.changed
		g.mu.Unlock()
		<-changed
		g.mu.Lock()
	}
	defer g.mu.Unlock()
	return g.events[place].said, nil
}

func (g *agent) event(handle int) (*event, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if handle < 0 || handle >= len(g.events) {
		return nil, fmt.Errorf("no event has the handle %d", handle)
	}
	return g.events[handle], nil
}

func (g *agent) stop(grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	g.agent.Stop(ctx)
}

func (r *runner) beginAgent(do string, a *arguments) (work, error) {
	g, err := r.agents.get(a.Agent)
	if err != nil {
		return nil, err
	}
	switch do {
	case "agent_next":
		return g.next, nil
	case "agent_close":
		return func() (any, error) { g.stop(10 * time.Second); return struct{}{}, nil }, nil
	}
	e, err := g.event(a.Handle)
	if err != nil {
		return nil, err
	}
	return e.begin(do, a)
}

func (e *event) begin(do string, a *arguments) (work, error) {
	if do != "context_send" && e.message == nil {
		return nil, errors.New("the event is no message")
	}
	switch do {
	case "context_send":
		return func() (any, error) {
			return receiptOr(e.user.Send(context.Background(), a.Message.build()))
		}, nil
	case "reply_send":
		return e.reply(a), nil
	case "reply_end":
		return e.finish(errReturn), nil
	case "reply_fail":
		return e.finish(errFailed), nil
	}
	return func() (any, error) {
		<-e.ctx.Done()
		if !e.message.Cancelled() {
			return nil, errors.New("the handler was not told of a cancellation")
		}
		return struct{}{}, nil
	}, nil
}

// reply has the handler send one chunk, in the order of the commands; one that has returned is not asked any more.
func (e *event) reply(a *arguments) work {
	var receipt sidecar.Receipt
	var err error
	done := make(chan struct{})
	send := sync.OnceFunc(func() {
		defer close(done)
		if e.stream == nil {
			e.stream = e.message.Reply(sidecar.EventType(a.EventType), sidecar.StreamID(a.StreamID))
		}
		receipt, err = e.stream.Send(e.ctx, a.Message.content())
	})
	e.jobs <- func() error { send(); return nil }
	return func() (any, error) {
		select {
		case <-done:
		case <-e.over:
			send()
		}
		return receiptOr(receipt, err)
	}
}

// finish has the handler return, and waits for the end of its stream.
func (e *event) finish(outcome error) work {
	e.jobs <- func() error { return outcome }
	return func() (any, error) {
		<-e.over
		if e.stream != nil {
			<-e.stream.Done()
		}
		return struct{}{}, nil
	}
}
