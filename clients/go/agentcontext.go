package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// refreshAt is the part of a token's life, since it came, after which it is refreshed. The sidecar hands a token out until
// half of its life is over.
const refreshAt = 0.4

// AgentContext is one connection context of one user. What is sent goes by that context's own token and user.
type AgentContext struct {
	// IsolationKey is opaque, and the same for as long as the context lives.
	IsolationKey string
	// User is who the context belongs to.
	User UserContext

	client *Client
	sender *Sender
	ended  atomic.Bool

	mu        sync.Mutex
	token     string
	refreshAt time.Time // zero: never

	kept bool // tokenRefresh looks after it, under whose mutex this is
}

// ContextToken is the newest context token, a secret. Read it each time: it is refreshed as long as the context is held.
func (a *AgentContext) ContextToken() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.token
}

// Ended reports whether the context has ended: it was closed, or the sidecar has answered ErrManagerGone.
func (a *AgentContext) Ended() bool { return a.ended.Load() }

// String tells whose it is, and no token.
func (a *AgentContext) String() string {
	return fmt.Sprintf("sidecar.AgentContext(user: %s, connection: %s)", a.User.UserID, a.User.ConnectionID)
}

// GoString is String: the token is a secret.
func (a *AgentContext) GoString() string { return a.String() }

// LogValue is String: the token is a secret.
func (a *AgentContext) LogValue() slog.Value { return slog.StringValue(a.String()) }

// Send sends one message to this context; it returns when the sidecar has accepted it. Options: WaitForAck, Timeout.
// Errors are those of [Client.SendToUser]; ErrManagerGone when the context has ended.
func (a *AgentContext) Send(ctx context.Context, message Message, options ...CallOption) (receipt Receipt, err error) {
	options = append(slices.Clip(options), ExpectedUserID(a.User.UserID))
	err = a.call(func(token string) error {
		if callSettingsFrom(options).holds {
			receipt, err = a.client.SendToUser(ctx, a.IsolationKey, token, message, options...)
		} else {
			receipt, err = a.send(ctx, token, message, options)
		}
		return err
	})
	return receipt, err
}

func (a *AgentContext) send(
	ctx context.Context, token string, message Message, options []CallOption,
) (Receipt, error) {
	pending, err := a.sender.Send(ctx, a.IsolationKey, token, message, options...)
	if err != nil {
		return Receipt{}, err
	}
	defer pending.Cancel() // for a context that ends first; of what has its outcome it does nothing
	return pending.Wait(ctx)
}

// EmitCriticalEvent sends one critical event; see [Client.EmitCriticalEvent]. Options: MessageID, WaitForAck, Timeout.
func (a *AgentContext) EmitCriticalEvent(
	ctx context.Context, eventType string, data any, options ...CallOption,
) (receipt Receipt, err error) {
	options = append(slices.Clip(options), ExpectedUserID(a.User.UserID))
	err = a.call(func(token string) error {
		receipt, err = a.client.EmitCriticalEvent(ctx, a.IsolationKey, token, eventType, data, options...)
		return err
	})
	return receipt, err
}

// Close ends the context; it returns how many sockets that had. Scope close. Options: CloseCode, Timeout.
func (a *AgentContext) Close(ctx context.Context, options ...CallOption) (connections int, err error) {
	err = a.call(func(token string) error {
		connections, err = a.client.CloseManager(ctx, a.IsolationKey, token, options...)
		return err
	})
	return connections, err
}

// call makes a call by the newest token; again where a newer one came while the first was refused.
func (a *AgentContext) call(with func(token string) error) error {
	for {
		token := a.ContextToken()
		err := with(token)
		if errors.Is(err, ErrManagerGone) {
			a.ended.Store(true)
		}
		if !errors.Is(err, ErrToken) || token == a.ContextToken() {
			return err
		}
	}
}

// renew takes a newer token.
func (a *AgentContext) renew(token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if token == "" || token == a.token {
		return
	}
	a.token, a.refreshAt = token, time.Time{}
	if life, ok := lifeOf(token); ok {
		a.refreshAt = time.Now().Add(time.Duration(refreshAt * float64(life)))
	}
}

// lapse says that a token is good no more: it is not refreshed. One that came meanwhile is.
func (a *AgentContext) lapse(token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if token == a.token {
		a.refreshAt = time.Time{}
	}
}

// dueAt is when the token is to be refreshed; false: never.
func (a *AgentContext) dueAt() (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.refreshAt, !a.refreshAt.IsZero() && !a.Ended()
}
