package sidecar

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
)

const (
	contextTokenKey = "x-context-token"
	serviceTokenKey = "x-service-token"
)

// unary is one call to be made. `once`: a second one would be another, so that it is not repeated.
type unary[Request, Response any] struct {
	method  func(context.Context, *Request, ...grpc.CallOption) (*Response, error)
	request *Request
	token   string
	service bool // the token is the service's
	once    bool
}

// run makes the call until it is answered, given up or out of time.
func run[Request, Response any](
	ctx context.Context, c *Client, s *callSettings, call unary[Request, Response],
) (*Response, error) {
	if c.isClosed() {
		return nil, closedError("the client")
	}
	ctx, cancel := c.bounded(ctx, s)
	defer cancel()
	name := contextTokenKey
	if call.service {
		name = serviceTokenKey
	}
	ctx, refused := c.withToken(ctx, name, call.token)
	if refused != nil {
		return nil, refused
	}
	tries := newRetries(ctx, c.settings.maxAttempts, call.once)
	for {
		answer, err := call.method(ctx, call.request)
		if err == nil {
			return answer, nil
		}
		failed := c.errorOf(ctx, err)
		wait, again := tries.after(failed)
		if !again || !sleep(ctx, c.closed, wait) {
			return nil, failed
		}
		if failed.Reason == "" && !c.reconnect(ctx) {
			return nil, failed
		}
	}
}

// reconnect has a lost connection tried again now, not after gRPC's own back-off, and waits a moment for it: a call has only
// so many tries, each fails at once while there is none, and chance may have them follow each other within milliseconds.
// Not more often than that back-off begins with: where it was tried just now, gRPC does so again within the wait. False when
// ctx ended.
func (c *Client) reconnect(ctx context.Context) bool {
	if c.conn.GetState() != connectivity.TransientFailure {
		return true // there is one; or the next try begins one, and waits for it
	}
	last, now := c.reconnected.Load(), time.Now().UnixNano()
	if now-last >= int64(reconnectBase) && c.reconnected.CompareAndSwap(last, now) {
		c.conn.ResetConnectBackoff()
	}
	wait, cancel := context.WithTimeout(ctx, reconnectWait)
	defer cancel()
	c.conn.WaitForStateChange(wait, connectivity.TransientFailure)
	return ctx.Err() == nil
}

// errorOf is what a failed call says; the end of the client is told from the caller's.
func (c *Client) errorOf(ctx context.Context, err error) *Error {
	failed := errorFromCall(ctx, err)
	if failed.Reason == "" && failed.Code == codes.Canceled && failed.cause == nil && c.isClosed() {
		failed.Message, failed.cause = "the client was closed", ErrClosed
	}
	return failed
}

// retries are one call's tries, within its one deadline.
type retries struct {
	left       int
	deadline   time.Time // zero: none
	unanswered bool
	pause      *backOff
}

func newRetries(ctx context.Context, maxAttempts int, once bool) *retries {
	made := &retries{left: maxAttempts - 1, pause: newBackOff(retryBase, retryCap)}
	if once {
		made.left = 0
	}
	made.deadline, _ = ctx.Deadline()
	return made
}

// after says whether to try again after this error, and when. The error is told of the tries before it: a refusal does
// not say what became of them.
func (r *retries) after(failed *Error) (time.Duration, bool) {
	failed.unansweredBefore = r.unanswered
	r.unanswered = !failed.Definite()
	if r.left == 0 || !failed.passes() {
		return 0, false
	}
	r.left--
	wait := r.pause.next(failed.RetryAfter)
	// An answer after the deadline is none: better the error that says why.
	return wait, r.deadline.IsZero() || time.Until(r.deadline) > wait
}
