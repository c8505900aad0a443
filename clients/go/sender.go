package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

const (
	mib          = 1 << 20
	closeTimeout = 5 * time.Second
	// halfClose is how long a stream on which all is answered may take to end in order: nothing is lost where it is cut off.
	halfClose = 200 * time.Millisecond

	maxLanes      = 1_024
	maxFrameItems = 1_000
	// A larger message is refused here: a frame over the sidecar's grpc.max_request_bytes (4 MiB) would break the stream
	// for everybody's messages.
	maxMessageBytes = 4*mib - 65_536
)

type senderLimits struct {
	inFlight   int
	lanes      int
	frameItems int
	frameBytes int
}

// SenderOption says more of a sender.
type SenderOption func(*senderSettings)

type senderSettings struct {
	limits            senderLimits
	reports           bool
	onStreamCancelled func(StreamCancellation)
}

// ReportAcknowledged has the sidecar tell what clients acknowledge and what is dropped: WaitForAck needs it.
func ReportAcknowledged() SenderOption {
	return func(s *senderSettings) { s.reports = true }
}

// OnStreamCancelled is called when a client wants no more of a response stream in a context that the sender sends to, once
// for each token that it sends by. It must not block: answers are not read meanwhile.
func OnStreamCancelled(call func(StreamCancellation)) SenderOption {
	return func(s *senderSettings) { s.onStreamCancelled = call }
}

// MaxInFlight is how many messages are on their way at most; further sends wait. Default: 4,096.
func MaxInFlight(messages int) SenderOption {
	return func(s *senderSettings) { s.limits.inFlight = max(1, messages) }
}

// MaxLanes is how many tokens have a lane at a time, at most and by default 1,024.
func MaxLanes(lanes int) SenderOption {
	return func(s *senderSettings) { s.limits.lanes = min(max(1, lanes), maxLanes) }
}

// Sender sends many messages fast, for many users, on one stream. Made by [Client.Sender].
//
// An idle sender writes at once; while a write is under way or flow control holds, the next messages gather into one
// frame. Messages are accepted in the order in which they were sent, context by context. A stream that breaks is opened
// again, and what had no answer is sent again with the same message id, in order, until its deadline. A message that the
// sidecar refuses fails alone and is not sent again: it would come after later ones.
type Sender struct {
	client  *Client
	reports bool
	core    *senderCore
	room    chan struct{} // holds one for each message in flight
	work    chan struct{} // there may be something to write
	pause   *backOff

	ctx      context.Context // of its streams
	end      context.CancelFunc
	closing  chan struct{}
	finished chan struct{}
	serving  atomic.Bool // there is a stream, not only the wait for one

	mu      sync.Mutex
	started bool
	closed  bool
}

// Sender makes a sender. It is closed with the client, or before. Options: ReportAcknowledged, OnStreamCancelled,
// MaxInFlight, MaxLanes.
func (c *Client) Sender(options ...SenderOption) *Sender {
	s := senderSettings{limits: senderLimits{4_096, maxLanes, maxFrameItems, mib}}
	for _, option := range options {
		option(&s)
	}
	made := &Sender{
		client:   c,
		reports:  s.reports,
		core:     newSenderCore(s.limits, s.reports),
		room:     make(chan struct{}, s.limits.inFlight),
		work:     make(chan struct{}, 1),
		pause:    newBackOff(retryBase, retryCap),
		closing:  make(chan struct{}),
		finished: make(chan struct{}),
	}
	made.core.onLeft = func() { <-made.room }
	made.core.onStreamCancelled = s.onStreamCancelled
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.senders == nil {
		made.closed = true // with its client
		close(made.closing)
		return made
	}
	c.senders[made] = struct{}{}
	return made
}

// String tells how many messages are on their way, and no token.
func (s *Sender) String() string { return fmt.Sprintf("sidecar.Sender(in flight: %d)", s.InFlight()) }

// GoString is String.
func (s *Sender) GoString() string { return s.String() }

// InFlight is how many messages wait to be written or answered.
func (s *Sender) InFlight() int { return s.core.held() }

// Send begins to send one message, and waits only for room: while MaxInFlight are on their way, until ctx ends. The
// message's deadline is that of a call (see [Client]); ctx ending otherwise does not take it back, [Pending.Cancel] does.
// Options: ExpectedUserID, WaitForAck (with ReportAcknowledged), Timeout.
func (s *Sender) Send(
	ctx context.Context, isolationKey, contextToken string, message Message, options ...CallOption,
) (*Pending, error) {
	set := callSettingsFrom(options)
	if set.holds && !s.reports {
		return nil, errors.New("sidecar: WaitForAck needs a sender with ReportAcknowledged")
	}
	built, failed := message.build()
	if failed == nil {
		failed = checkAddress(isolationKey, contextToken, set.expectedUserID)
	}
	if failed != nil {
		return nil, failed
	}
	pending := &Pending{
		core:    s.core,
		key:     laneKey{isolationKey, contextToken, set.expectedUserID},
		message: built,
		size:    proto.Size(built),
		holds:   set.holds,
		hold:    set.hold,
	}
	if pending.size > maxMessageBytes {
		return nil, badRequest("message.payload", fmt.Sprintf("at most %d bytes", maxMessageBytes))
	}
	set.hold = 0 // it begins when the message was accepted
	pending.deadline, _ = s.client.deadline(ctx, &set)
	if failed := s.acquire(ctx, pending.deadline); failed != nil {
		return nil, failed
	}
	if failed := s.begin(ctx, pending); failed != nil {
		return nil, failed
	}
	return pending, nil
}

// acquire takes a place among those in flight.
func (s *Sender) acquire(ctx context.Context, deadline time.Time) *Error {
	select {
	case s.room <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case s.room <- struct{}{}:
		return nil
	case <-timer.C:
		return deadlineExceeded()
	case <-ctx.Done():
		return errorFromContext(ctx)
	case <-s.closing:
		return closedError("the sender")
	}
}

// begin queues a message that has its place.
func (s *Sender) begin(ctx context.Context, pending *Pending) *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		<-s.room
		return closedError("the sender")
	}
	if !s.started {
		s.started = true
		s.start(ctx)
	}
	s.core.add(pending)
	s.wake()
	return nil
}

// start begins to serve; of the first send's context the streams keep the trace, and no end.
func (s *Sender) start(ctx context.Context) {
	s.ctx, s.end = context.WithCancel(context.WithoutCancel(ctx))
	go s.run()
}

func (s *Sender) wake() {
	select {
	case s.work <- struct{}{}:
	default:
	}
}

// Close takes no more, writes what is queued, half-closes and waits for the receipts, at most 5 seconds: not at all where
// nothing is queued or unanswered, also while the sidecar is away. The rest fails with ErrTransport, CANCELLED. Idempotent;
// returns nil.
func (s *Sender) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	started := s.started
	s.mu.Unlock()
	if started {
		s.finish()
		s.end()
		<-s.finished
	}
	s.core.failAll(&Error{Code: codes.Canceled, Message: "the sender was closed", cause: ErrClosed})
	s.client.mu.Lock()
	delete(s.client.senders, s)
	s.client.mu.Unlock()
	return nil
}

// finish waits until all is answered, then a moment for the stream to end.
func (s *Sender) finish() {
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-s.finished:
		return
	case <-s.core.whenIdle():
	case <-timer.C:
		return
	}
	if !s.serving.Load() {
		return
	}
	s.wake() // what expired is not written any more: it may half-close
	half := time.NewTimer(halfClose)
	defer half.Stop()
	select {
	case <-s.finished:
	case <-half.C:
	case <-timer.C:
	}
}

func (s *Sender) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// The stream

// run opens a stream whenever there is something to write, until the sender closes.
func (s *Sender) run() {
	defer close(s.finished)
	for s.awaitWork() {
		ended := s.stream()
		if s.ctx.Err() != nil {
			return
		}
		if ended == nil {
			continue
		}
		s.core.streamEnded(ended, ended.breaks())
		if s.core.hasQueued() && !sleep(s.ctx, nil, s.pause.next(ended.RetryAfter)) {
			return
		}
	}
}

// awaitWork returns true when there is something to write, false when the sender closes and there is not.
func (s *Sender) awaitWork() bool {
	for !s.core.hasQueued() {
		select {
		case <-s.work:
		case <-s.closing:
			return s.core.hasQueued()
		case <-s.ctx.Done():
			return false
		}
	}
	return true
}

// stream is one stream, from its first frame to its end; why it ended. It has no deadline: its messages have.
func (s *Sender) stream() *Error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	ctx, failed := s.client.withToken(ctx, contextTokenKey, "")
	if failed != nil {
		return failed
	}
	// A frame that is handed to a stream cannot be taken back: none is while nobody is there to read it.
	stream, err := s.client.delivery.Deliver(ctx, grpc.WaitForReady(true))
	if err != nil {
		return errorFromCall(ctx, err)
	}
	if !s.core.hasQueued() {
		return nil // it was given up meanwhile: a stream without a lane would only be ended
	}
	s.serving.Store(true)
	defer s.serving.Store(false)
	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write(ctx, stream)
	}()
	defer func() { cancel(); <-written }()
	return s.read(ctx, stream)
}

func (s *Sender) read(ctx context.Context, stream apiv1.DeliveryService_DeliverClient) *Error {
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return &Error{Code: codes.Unavailable, Message: "the stream ended"}
		}
		if err != nil {
			return errorFromCall(ctx, err)
		}
		s.core.received(response)
		s.pause.reset()
		if s.core.hasQueued() {
			s.wake() // a lane may have become free
		}
	}
}

// write writes until the stream or the sender ends. A write that fails says less than the read beside it, which ends with
// the stream's status.
func (s *Sender) write(ctx context.Context, stream apiv1.DeliveryService_DeliverClient) {
	closing := s.closing
	for {
		frames := s.core.take()
		for _, frame := range frames {
			if stream.Send(frame) != nil {
				return
			}
		}
		if len(frames) > 0 {
			continue
		}
		if s.isClosing() && !s.core.hasQueued() {
			_ = stream.CloseSend()
			return
		}
		select {
		case <-s.work:
		case <-closing:
			closing = nil // seen: from here on only work or the end wakes it
		case <-ctx.Done():
			return
		}
	}
}
