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

// keep refreshes that context's token as long as somebody holds the context. Once a context.
func (r *tokenRefresh) keep(held *AgentContext) {
	if at, ok := held.dueAt(); ok {
		r.push(held, at)
	}
}

func (r *tokenRefresh) push(held *AgentContext, at time.Time) {
	r.mu.Lock()
	heap.Push(&r.due, dueContext{at, weak.Make(held)})
	r.mu.Unlock()
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
	at, ok := held.dueAt()
	if ok && time.Until(at) <= 0 {
		at, ok = r.renew(ctx, held)
	}
	if ok && ctx.Err() == nil {
		r.push(held, at)
	}
}

func (r *tokenRefresh) renew(ctx context.Context, held *AgentContext) (time.Time, bool) {
	token, err := r.refresh(ctx, held.ContextToken())
	switch {
	case err == nil:
		held.renew(token.Text)
		return held.dueAt()
	case errors.Is(err, ErrManagerGone):
		held.ended.Store(true)
		return time.Time{}, false
	case errors.Is(err, ErrToken):
		return time.Time{}, false // it is good no more; the next event brings another
	case ctx.Err() == nil:
		r.logger.Warn("a context token could not be refreshed", "error", err)
	}
	return time.Now().Add(refreshAgain), true
}
