package sidecar

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
	"weak"
)

// refreshAgain is when to try again what failed for now; a token has minutes left then.
const refreshAgain = 5 * time.Second

// tokenRefresh keeps the tokens of living contexts good: of those that somebody still holds, each before it ends.
type tokenRefresh struct {
	refresh func(ctx context.Context, token string) (ContextToken, error)
	logger  *slog.Logger
	sooner  chan struct{} // something is due earlier than before

	mu  sync.Mutex
	due dueHeap
}

type dueContext struct {
	at      time.Time
	context weak.Pointer[AgentContext] // what nobody else holds is not held here either
}

type dueHeap []dueContext

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(each any)     { *h = append(*h, each.(dueContext)) }
func (h *dueHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func newTokenRefresh(
	refresh func(ctx context.Context, token string) (ContextToken, error), logger *slog.Logger,
) *tokenRefresh {
	return &tokenRefresh{refresh: refresh, logger: logger, sooner: make(chan struct{}, 1)}
}

// keep refreshes that context's token as long as somebody holds the context. It is told of every token that an event
// brings: after one that was refused, the next is the first to be refreshed again.
func (r *tokenRefresh) keep(held *AgentContext) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !held.kept {
		r.push(held, time.Time{})
	}
}

// push has a context looked at when its token is due, and not before; not at all where it never is. Under the mutex, so
// that no token comes between: each is either seen here, or kept.
func (r *tokenRefresh) push(held *AgentContext, notBefore time.Time) {
	at, ok := held.dueAt()
	if held.kept = ok; !ok {
		return
	}
	if at.Before(notBefore) {
		at = notBefore
	}
	heap.Push(&r.due, dueContext{at, weak.Make(held)})
	select {
	case r.sooner <- struct{}{}:
	default:
	}
}

// run refreshes until ctx ends.
func (r *tokenRefresh) run(ctx context.Context) {
	for {
		wait := time.Duration(1<<63 - 1)
		next, ok := r.first()
		if ok {
			wait = time.Until(next)
		}
		if wait <= 0 {
			r.look(ctx, r.take())
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-r.sooner:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

func (r *tokenRefresh) first() (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.due) == 0 {
		return time.Time{}, false
	}
	return r.due[0].at, true
}

func (r *tokenRefresh) take() *AgentContext {
	r.mu.Lock()
	defer r.mu.Unlock()
	return heap.Pop(&r.due).(dueContext).context.Value()
}

// look renews the token of a context, unless a newer one came by itself.
func (r *tokenRefresh) look(ctx context.Context, held *AgentContext) {
	if held == nil {
		return
	}
	var notBefore time.Time
	if at, ok := held.dueAt(); ok && time.Until(at) <= 0 {
		notBefore = r.renew(ctx, held)
	}
	if ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.push(held, notBefore)
}

// renew asks for another token; before which time not to ask again.
func (r *tokenRefresh) renew(ctx context.Context, held *AgentContext) time.Time {
	token := held.ContextToken()
	renewed, err := r.refresh(ctx, token)
	switch {
	case err == nil:
		held.renew(renewed.Text)
		return time.Time{}
	case errors.Is(err, ErrManagerGone):
		held.ended.Store(true)
		return time.Time{}
	case errors.Is(err, ErrToken):
		held.lapse(token)
		return time.Time{}
	case ctx.Err() == nil:
		r.logger.Warn("a context token could not be refreshed", "error", err)
	}
	return time.Now().Add(refreshAgain)
}
