package sidecar

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

const (
	maxAcknowledged  = 10_000 // delivery ids in one frame
	maxFrameEvents   = 100    // events in one frame, as many as the sidecar puts in one
	halfCloseTimeout = 5 * time.Second

	defaultAckTimeout = time.Minute // the sidecar's
)

// Subscription is what a service takes: the messages of that event; `*` is whatever no other service takes.
type Subscription struct {
	Event    string
	TenantID string // empty: every tenant that the service may have
}

// registration is who a worker is and what it takes.
type registration struct {
	serviceName   string
	subscriptions []Subscription
	ackTimeout    time.Duration // 0: the sidecar's
}

// check refuses what no frame can hold.
func (r *registration) check() *Error {
	good := utf8.ValidString(r.serviceName)
	for _, each := range r.subscriptions {
		good = good && utf8.ValidString(each.Event) && utf8.ValidString(each.TenantID)
	}
	if !good {
		return badRequest("register", "a text is UTF-8")
	}
	return nil
}

// patience is how long an event may wait for its handler without being acknowledged: half of the time in which it is to be.
func (r *registration) patience() time.Duration {
	if r.ackTimeout == 0 {
		return defaultAckTimeout / 2
	}
	return r.ackTimeout / 2
}

// frame is the first one.
func (r *registration) frame(credit int) *apiv1.AttachRequest {
	register := &apiv1.AttachRequest_Register{
		ServiceName: r.serviceName, Credits: uint32(credit), MaxFrameEvents: maxFrameEvents,
	}
	for _, each := range r.subscriptions {
		register.Subscriptions = append(register.Subscriptions, &apiv1.AttachRequest_Subscription{
			TenantId: each.TenantID, Event: each.Event,
		})
	}
	if r.ackTimeout != 0 {
		register.AckTimeout = durationpb.New(r.ackTimeout)
	}
	return &apiv1.AttachRequest{Frame: &apiv1.AttachRequest_Register_{Register: register}}
}

// agentStream is one worker's call, from register to its end. What is to be said gathers while the writer is busy.
type agentStream struct {
	onRegistered func()
	onEvent      func(*apiv1.AttachResponse_Event)

	mu           sync.Mutex
	acknowledged []string
	credit       int
	leaving      bool
	work         chan struct{}
}

func newAgentStream(onRegistered func(), onEvent func(*apiv1.AttachResponse_Event)) *agentStream {
	return &agentStream{onRegistered: onRegistered, onEvent: onEvent, work: make(chan struct{}, 1)}
}

// say has something said: that an event is ours, that so many more may come, that we leave.
func (s *agentStream) say(deliveryID string, credit int, leave bool) {
	s.mu.Lock()
	if deliveryID != "" {
		s.acknowledged = append(s.acknowledged, deliveryID)
	}
	s.credit += credit
	s.leaving = s.leaving || leave
	s.mu.Unlock()
	select {
	case s.work <- struct{}{}:
	default:
	}
}

func (s *agentStream) acknowledge(deliveryID string) { s.say(deliveryID, 0, false) }

func (s *agentStream) more(credit int) { s.say("", credit, false) }

// leave has what is still to be said written, then half-closes; the sidecar then ends the call. Idempotent.
func (s *agentStream) leave() { s.say("", 0, true) }

// run serves until the call ends; why it did, nil after leave.
func (s *agentStream) run(ctx context.Context, c *Client, register *apiv1.AttachRequest) *Error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx, failed := c.withToken(ctx, serviceTokenKey, c.settings.serviceToken)
	if failed != nil {
		return failed
	}
	call, err := c.agents.Attach(ctx)
	if err != nil {
		return c.errorOf(ctx, err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write(ctx, call, register)
	}()
	defer func() { cancel(); <-written }()
	return s.read(ctx, c, call)
}

func (s *agentStream) read(ctx context.Context, c *Client, call apiv1.AgentService_AttachClient) *Error {
	for {
		response, err := call.Recv()
		if errors.Is(err, io.EOF) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.leaving {
				return nil
			}
			return &Error{Code: codes.Unavailable, Message: "the stream ended"}
		}
		if err != nil {
			return c.errorOf(ctx, err)
		}
		switch frame := response.GetFrame().(type) {
		case *apiv1.AttachResponse_Registered_:
			s.onRegistered()
		case *apiv1.AttachResponse_Event_:
			s.onEvent(frame.Event)
		case *apiv1.AttachResponse_Events_:
			for _, event := range frame.Events.GetItems() {
				s.onEvent(event)
			}
		}
	}
}

// write says what is to be said. A write that fails says less than the read beside it, which ends with the call's status.
func (s *agentStream) write(
	ctx context.Context, call apiv1.AgentService_AttachClient, register *apiv1.AttachRequest,
) {
	if call.Send(register) != nil {
		return
	}
	for {
		frames, leaving := s.take()
		for _, frame := range frames {
			if call.Send(frame) != nil {
				return
			}
		}
		if leaving {
			_ = call.CloseSend()
			return
		}
		select {
		case <-s.work:
		case <-ctx.Done():
			return
		}
	}
}

func (s *agentStream) take() (frames []*apiv1.AttachRequest, leaving bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.acknowledged) > 0 {
		ids := s.acknowledged[:min(len(s.acknowledged), maxAcknowledged)]
		s.acknowledged = s.acknowledged[len(ids):]
		frames = append(frames, &apiv1.AttachRequest{Frame: &apiv1.AttachRequest_Acknowledge_{
			Acknowledge: &apiv1.AttachRequest_Acknowledge{DeliveryIds: ids},
		}})
	}
	s.acknowledged = nil
	if s.credit > 0 {
		frames = append(frames, &apiv1.AttachRequest{Frame: &apiv1.AttachRequest_Credit_{
			Credit: &apiv1.AttachRequest_Credit{Credits: uint32(s.credit)},
		}})
		s.credit = 0
	}
	return frames, s.leaving
}
