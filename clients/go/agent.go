package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	defaultCredits = 64
	defaultGrace   = 10 * time.Second
)

// AgentOption says more of an agent.
type AgentOption func(*Agent)

// WithClient has the agent use a client that others use too; the agent does not close it. Default: one of its own, by the
// environment.
func WithClient(client *Client) AgentOption {
	return func(a *Agent) { a.client = client }
}

// WithSubscriptions is what the service takes. Default: the events that it has handlers for, else `*`.
func WithSubscriptions(subscriptions ...Subscription) AgentOption {
	return func(a *Agent) { a.registration.subscriptions = subscriptions }
}

// WithCredits is how many events are in hand at most. Default: 64.
func WithCredits(credits int) AgentOption {
	return func(a *Agent) { a.credits = max(1, credits) }
}

// WithAckTimeout is after how long the sidecar hands on what this worker did not acknowledge. Default: the sidecar's.
func WithAckTimeout(timeout time.Duration) AgentOption {
	return func(a *Agent) { a.registration.ackTimeout = timeout }
}

// WithGrace is what handlers have to end in when the context of Run ends. Default: 10 seconds.
func WithGrace(grace time.Duration) AgentOption {
	return func(a *Agent) { a.grace = grace }
}

// Agent is one worker of an agent service: attached to the sidecar, it is told of its users and answers them. It runs no
// server of its own. Give it handlers, then [Agent.Run] it.
//
// Events of one context are handled one after the other, those of different contexts side by side. A handler that returns
// an error or panics is logged, and nothing else ends for it. An event is acknowledged when its handler
// begins; one that waits behind another of its context when half of the ack timeout is over. Another worker gets it only
// where this process is lost or stopped before that. A lost sidecar is attached to again.
type Agent struct {
	client       *Client
	registration registration
	credits      int
	grace        time.Duration
	handlers     handlers

	mu      sync.Mutex
	loop    *agentLoop
	started chan struct{} // closed when Run has begun
}

// NewAgent makes an agent of the service of that name, the same for all its workers.
func NewAgent(serviceName string, options ...AgentOption) *Agent {
	made := &Agent{
		registration: registration{serviceName: serviceName},
		credits:      defaultCredits,
		grace:        defaultGrace,
		handlers:     handlers{messages: make(map[string]MessageHandler)},
		started:      make(chan struct{}),
	}
	for _, option := range options {
		option(made)
	}
	return made
}

// OnOpened sets what is told of every context that is made, of the service's tenants. As all handlers, before Run.
func (a *Agent) OnOpened(handler ContextHandler) { a.handlers.opened = handler }

// OnAway sets what is told when a user's connection is lost, for now.
func (a *Agent) OnAway(handler ContextHandler) { a.handlers.away = handler }

// OnBack sets what is told when the user is connected again.
func (a *Agent) OnBack(handler ContextHandler) { a.handlers.back = handler }

// OnClosed sets what is told when a context has ended.
func (a *Agent) OnClosed(handler ClosedHandler) { a.handlers.closed = handler }

// OnMessage sets what is handed the messages of that event, `*` for those that no other handler or service takes.
func (a *Agent) OnMessage(event string, handler MessageHandler) { a.handlers.messages[event] = handler }

// String tells which service it is of.
func (a *Agent) String() string { return fmt.Sprintf("sidecar.Agent(%s)", a.registration.serviceName) }

// Run serves until ctx ends or Stop is called, which returns nil, or until the sidecar refuses for good: ErrToken,
// ErrServiceDenied, ErrSubscriptionTaken, ErrBadRequest. Before it returns, handlers have their grace to end in. Once an
// agent.
func (a *Agent) Run(ctx context.Context) error {
	loop, err := a.start(ctx)
	if err != nil {
		return err
	}
	select {
	case <-loop.denied:
	case <-loop.stopped:
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.grace)
	defer cancel()
	a.Stop(grace)
	if loop.refused != nil {
		return loop.refused
	}
	return nil
}

// WaitAttached returns when the sidecar has registered this worker, which Run has it do. Fails with what the sidecar
// refuses for good, or with ErrTransport when ctx ends.
func (a *Agent) WaitAttached(ctx context.Context) error {
	select {
	case <-a.started:
	case <-ctx.Done():
		return errorFromContext(ctx)
	}
	loop := a.loop
	select {
	case <-loop.whenAttached():
		return nil
	case <-loop.over:
		if loop.refused != nil {
			return loop.refused
		}
		return &Error{Code: codes.Canceled, Message: "the agent is stopped", cause: ErrClosed}
	case <-ctx.Done():
		failed := errorFromContext(ctx)
		failed.Message = "the sidecar has not registered the agent"
		return failed
	}
}

// Stop detaches, lets handlers end until ctx ends, and cancels the others. What is not acknowledged, and what comes from now
// on, other workers of the service have at once; what is, is handled here. A handler that is cancelled fails its response
// streams, so that their users see an end. Idempotent, bounded; of an agent that does not run it does nothing.
func (a *Agent) Stop(ctx context.Context) {
	select {
	case <-a.started:
		a.loop.stop(ctx)
	default:
	}
}

func (a *Agent) start(ctx context.Context) (*agentLoop, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.loop != nil {
		return nil, errors.New("sidecar: an agent is run once")
	}
	if a.registration.subscriptions == nil {
		a.registration.subscriptions = a.handled()
	}
	if failed := a.registration.check(); failed != nil {
		return nil, failed
	}
	owned := a.client == nil
	if owned {
		client, err := NewClient()
		if err != nil {
			return nil, err
		}
		a.client = client
	}
	a.loop = newAgentLoop(a, ctx, owned)
	a.loop.start()
	close(a.started)
	return a.loop, nil
}

// handled is what there are handlers for.
func (a *Agent) handled() []Subscription {
	events := slices.Sorted(maps.Keys(a.handlers.messages))
	if len(events) == 0 {
		events = []string{"*"}
	}
	made := make([]Subscription, 0, len(events))
	for _, event := range events {
		made = append(made, Subscription{Event: event})
	}
	return made
}

func (a *Agent) logger() *slog.Logger { return a.client.settings.logger }
