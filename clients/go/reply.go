package sidecar

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	replyTimeout = 30 * time.Second
	failTimeout  = 5 * time.Second
)

// ReplyOption says more of a response stream.
type ReplyOption func(*ReplyStream)

// EventType is the event type of every chunk.
func EventType(name string) ReplyOption {
	return func(r *ReplyStream) { r.eventType = name }
}

// StreamID is an identifier, the stream's within its context. Default: made up.
func StreamID(id string) ReplyOption {
	return func(r *ReplyStream) { r.id = id }
}

// ChunkTimeout is how long each chunk is tried. Default: 30 seconds.
func ChunkTimeout(timeout time.Duration) ReplyOption {
	return func(r *ReplyStream) { r.timeout = timeout }
}

// ReplyStream is an answer in chunks, in order and each once, with an end that the client sees. Made by
// [InboundMessage.Reply]. When the handler returns, the stream ends; when it returns an error or panics, the stream fails,
// without a word of the error. Chunks are sent one after the other.
type ReplyStream struct {
	id        string
	context   *AgentContext
	answering *answering
	replyTo   string
	eventType string
	timeout   time.Duration

	turn      chan struct{} // held by whoever sends
	next      uint64
	unsettled *Message // a chunk whose fate is not known: sent again, in its place, before anything else
	done      chan struct{}
	finish    func() // closes done; idempotent
}

// ID names the stream within its context.
func (r *ReplyStream) ID() string { return r.id }

// Done is closed when the stream is over, however it came to that.
func (r *ReplyStream) Done() <-chan struct{} { return r.done }

// Send sends the next chunk; it returns when the sidecar has accepted it. Of the message only the payload, its content
// type and the headers are heeded.
//
// It is tried again until the stream's timeout, where the sidecar cannot take it now or the client is slow.
// ErrStreamCancelled says that the client wants no more; the handler's context has ended then. When ctx ends first, the
// chunk may be taken, before whatever is next.
func (r *ReplyStream) Send(ctx context.Context, chunk Message) (Receipt, error) {
	return r.put(ctx, StreamOpen, chunk)
}

// End sends the last chunk, which says nothing. The end of the handler does it by itself.
func (r *ReplyStream) End(ctx context.Context) (Receipt, error) { return r.EndWith(ctx, Message{}) }

// EndWith sends the last chunk.
func (r *ReplyStream) EndWith(ctx context.Context, chunk Message) (Receipt, error) {
	return r.put(ctx, StreamEnd, chunk)
}

// Fail sends the last chunk of an answer that failed; what it says of the cause is yours to choose: Message{} is nothing.
func (r *ReplyStream) Fail(ctx context.Context, chunk Message) (Receipt, error) {
	return r.put(ctx, StreamError, chunk)
}

func (r *ReplyStream) put(ctx context.Context, state StreamState, chunk Message) (Receipt, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	default:
		select {
		case r.turn <- struct{}{}:
			defer func() { <-r.turn }()
		case <-ctx.Done():
			return Receipt{}, errorFromContext(ctx)
		}
	}
	receipt, err := r.putNext(ctx, state, chunk)
	switch {
	case errors.Is(err, ErrStreamCancelled):
		r.answering.cancel()
		r.answering.remove(r)
	case err != nil && r.answering.cancelled():
		err = streamCancelled() // the handler's context has ended for it
	case err == nil && state != StreamOpen:
		r.answering.remove(r)
	}
	return receipt, err
}

func (r *ReplyStream) putNext(ctx context.Context, state StreamState, chunk Message) (Receipt, error) {
	if r.answering.cancelled() {
		return Receipt{}, streamCancelled()
	}
	select {
	case <-r.done:
		return Receipt{}, refusal(codes.FailedPrecondition, ErrStreamEnded, "the stream is over")
	default:
	}
	if r.unsettled != nil {
		if _, err := r.settle(ctx, r.unsettled); err != nil {
			return Receipt{}, err
		}
	}
	return r.settle(ctx, &Message{
		ID:          newMessageID(),
		EventType:   r.eventType,
		Payload:     chunk.Payload,
		ContentType: chunk.ContentType,
		Headers:     chunk.Headers,
		ReplyTo:     r.replyTo,
		Stream:      &StreamPlace{r.id, r.next, state},
		err:         chunk.err,
	})
}

// settle sends the chunk until it is taken or refused; else it is kept, and is the first to be sent again.
func (r *ReplyStream) settle(ctx context.Context, chunk *Message) (Receipt, error) {
	r.unsettled = chunk
	deadline := time.Now().Add(r.timeout)
	pause := newBackOff(retryBase, retryCap)
	for {
		receipt, err := r.context.Send(ctx, *chunk, Timeout(max(time.Until(deadline), time.Millisecond)))
		if err == nil {
			r.unsettled = nil
			r.next = chunk.Stream.Index + 1
			return receipt, nil
		}
		var failed *Error
		if !errors.As(err, &failed) {
			return Receipt{}, err
		}
		wait := pause.next(failed.RetryAfter)
		if ctx.Err() == nil && isLater(failed) && time.Until(deadline) > wait && sleep(ctx, nil, wait) {
			continue
		}
		if failed.Definite() || failed.Reason == ErrManagerGone {
			r.unsettled = nil
		}
		return Receipt{}, failed
	}
}

// isLater reports whether the same chunk may be taken later. A full outbox is a client that reads too slowly: the agent
// waits.
func isLater(failed *Error) bool {
	if failed.Reason != "" && failed.Code == codes.ResourceExhausted {
		return failed.RetryAfter > 0
	}
	return failed.passes()
}

// finish ends the streams that a handler has left open, or fails them; why they did not end.
func (a *answering) finish(handled error) error {
	ctx := a.ctx
	if ctx.Err() != nil || handled != nil {
		// What goes wrong from here on says less than what went wrong in the handler.
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), failTimeout)
		defer cancel()
		ctx = bounded
	}
	var failed error
	for _, stream := range a.open() {
		switch {
		case a.cancelled() || stream.context.Ended():
			a.remove(stream)
		case handled != nil:
			_, _ = stream.Fail(ctx, Message{})
			a.remove(stream)
		default:
			if _, err := stream.End(ctx); err != nil {
				failed = err
			}
			a.remove(stream)
		}
	}
	return failed
}
