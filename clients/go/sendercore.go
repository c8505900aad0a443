package sidecar

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

// StreamCancellation says that a client wants no more of a response stream, or of the answer to a message of its own; one
// of StreamID and ReplyTo may be empty.
type StreamCancellation struct {
	IsolationKey string
	StreamID     string
	ReplyTo      string
}

// senderCore decides what goes into the next frame, whose an answer is, and what is sent again: the messages of one
// sender from add to their outcome, over as many streams as it takes. It does no I/O; every step is one under the mutex.
type senderCore struct {
	limits            senderLimits
	reports           bool
	onLeft            func() // once for each message, when nothing of it is held any more
	onStreamCancelled func(StreamCancellation)

	mu       sync.Mutex
	queue    *list.List // of *Pending, to be written
	lanes    *lanes
	added    uint64
	inFlight int
	idle     chan struct{} // closed when nothing is held; made when it is asked for
	earliest time.Time     // no deadline of a message is before it
	timer    *time.Timer
}

func newSenderCore(limits senderLimits, reports bool) *senderCore {
	return &senderCore{limits: limits, reports: reports, queue: list.New(), lanes: newLanes(limits.lanes)}
}

func (c *senderCore) hasQueued() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queue.Len() > 0
}

func (c *senderCore) held() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inFlight
}

// whenIdle is closed once no message waits to be written or answered. Ask when no more are added.
func (c *senderCore) whenIdle() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle == nil {
		c.idle = make(chan struct{})
		if c.inFlight == 0 {
			close(c.idle)
		}
	}
	return c.idle
}

// add queues a message behind all that were added before.
func (c *senderCore) add(p *Pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.order = c.added
	c.added++
	c.inFlight++
	p.queued = c.queue.PushBack(p)
	c.watch(p.deadline)
}

// cancel gives a message up, for whoever waits for it.
func (c *senderCore) cancel(p *Pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveUp(p, &Error{Code: codes.Canceled, Message: "the message was given up"})
}

// giveUp settles a message without its answer: unwritten it is dropped; written, its answer is taken and forgotten.
func (c *senderCore) giveUp(p *Pending, failed *Error) {
	if p.left || p.abandoned {
		return
	}
	p.settle(failed)
	p.abandoned = true
	if p.queued != nil {
		c.queue.Remove(p.queued)
		p.queued = nil
		c.leave(p)
	} else if p.accepted {
		c.stopWaiting(p)
	}
}

func (c *senderCore) stopWaiting(p *Pending) {
	p.lane.waiting = slices.DeleteFunc(p.lane.waiting, func(other *Pending) bool { return other == p })
	c.leave(p)
	c.lanes.forgetIfOver(p.lane)
}

// Out

// take is the next frames to write, in order; none when there is nothing, or no lane free for what is next.
func (c *senderCore) take() []*apiv1.DeliverRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := min(c.queue.Len(), c.limits.frameItems)
	if most == 0 {
		return nil
	}
	var frames []*apiv1.DeliverRequest
	items := make([]*apiv1.DeliverRequest_LaneMessage, 0, most)
	size := 0
	for len(items) < most {
		p := c.queue.Front().Value.(*Pending)
		if len(items) > 0 && size+p.size > c.limits.frameBytes {
			break
		}
		l := c.lanes.find(p.key)
		if l == nil {
			if l, frames = c.openLane(p.key, frames); l == nil {
				break
			}
		}
		c.queue.Remove(p.queued)
		p.queued = nil
		l.pending = append(l.pending, p)
		size += p.size
		items = append(items, &apiv1.DeliverRequest_LaneMessage{Lane: l.number, Message: p.message})
	}
	if len(items) > 0 {
		frames = append(frames, &apiv1.DeliverRequest{Frame: &apiv1.DeliverRequest_Messages_{
			Messages: &apiv1.DeliverRequest_Messages{Items: items},
		}})
	}
	return frames
}

// openLane opens one, where need be in the place of an idle one; nil when all are busy.
func (c *senderCore) openLane(key laneKey, frames []*apiv1.DeliverRequest) (*lane, []*apiv1.DeliverRequest) {
	if c.lanes.full() {
		least := c.lanes.closeLeastRecent()
		if least == nil {
			return nil, frames
		}
		frames = append(frames, &apiv1.DeliverRequest{Frame: &apiv1.DeliverRequest_CloseLane_{
			CloseLane: &apiv1.DeliverRequest_CloseLane{Lane: least.number},
		}})
	}
	l := c.lanes.add(key)
	return l, append(frames, &apiv1.DeliverRequest{Frame: &apiv1.DeliverRequest_OpenLane_{
		OpenLane: &apiv1.DeliverRequest_OpenLane{
			Lane:               l.number,
			IsolationKey:       key.isolationKey,
			ContextToken:       key.contextToken,
			ExpectedUserId:     key.expectedUserID,
			ReportAcknowledged: c.reports,
		},
	}})
}

// In

// received takes one frame of the sidecar's. Kinds that came after this version are left alone.
func (c *senderCore) received(response *apiv1.DeliverResponse) {
	c.mu.Lock()
	var cancelled *StreamCancellation
	switch frame := response.GetFrame().(type) {
	case *apiv1.DeliverResponse_Receipts_:
		for _, item := range frame.Receipts.GetItems() {
			c.onReceipt(item)
		}
	case *apiv1.DeliverResponse_LaneError_:
		c.onLaneError(frame.LaneError)
	case *apiv1.DeliverResponse_Acknowledged_:
		if l := c.lanes.byNumber[frame.Acknowledged.GetLane()]; l != nil {
			l.position = max(l.position, frame.Acknowledged.GetSequence())
			c.decide(l)
		}
	case *apiv1.DeliverResponse_Dropped_:
		if l := c.lanes.byNumber[frame.Dropped.GetLane()]; l != nil {
			l.dropped(frame.Dropped.GetFrom(), frame.Dropped.GetTo())
			c.decide(l)
		}
	case *apiv1.DeliverResponse_StreamCancelled_:
		said := frame.StreamCancelled
		if l := c.lanes.byNumber[said.GetLane()]; l != nil {
			cancelled = &StreamCancellation{l.key.isolationKey, said.GetStreamId(), said.GetReplyTo()}
		}
	}
	c.mu.Unlock()
	if cancelled != nil && c.onStreamCancelled != nil {
		c.onStreamCancelled(*cancelled)
	}
}

func (c *senderCore) onReceipt(item *apiv1.DeliverResponse_LaneReceipt) {
	l := c.lanes.byNumber[item.GetLane()]
	if l == nil {
		return
	}
	p := l.answered(item.GetNumber())
	if p == nil {
		return
	}
	if receipt := item.GetReceipt(); receipt != nil {
		c.onAccepted(l, p, receiptFrom(receipt))
	} else {
		refused := errorFromStatus(item.GetError())
		if refused.Reason == ErrLaneNotOpen && l.err != nil {
			refused = l.err
		}
		c.finish(p, refused.again(p.unanswered))
	}
	c.lanes.forgetIfOver(l)
}

func (c *senderCore) onAccepted(l *lane, p *Pending, receipt Receipt) {
	p.accept(receipt)
	decided := receipt.State == Acknowledged || receipt.State == Dropped
	if !p.holds || p.abandoned || decided || l.err != nil {
		c.finish(p, nil)
		return
	}
	p.lane, l.waiting = l, append(l.waiting, p)
	c.watch(p.deadline)
	c.decide(l)
}

// onLaneError ends a lane: what was written is still answered one by one; what was accepted is heard of no more.
func (c *senderCore) onLaneError(said *apiv1.DeliverResponse_LaneError) {
	l := c.lanes.byNumber[said.GetLane()]
	if l == nil {
		return
	}
	l.err = errorFromStatus(said.GetError())
	for _, p := range l.waiting {
		c.finish(p, nil)
	}
	l.waiting = nil
	c.lanes.shut(l)
}

// decide finishes the messages of a lane whose fate is known by now.
func (c *senderCore) decide(l *lane) {
	l.waiting = slices.DeleteFunc(l.waiting, func(p *Pending) bool {
		state, known := l.fateOf(p.receipt.Sequence)
		if known {
			p.receipt.State = state
			c.finish(p, nil)
		}
		return known
	})
	c.lanes.forgetIfOver(l)
}

// Ends

// streamEnded is told that the stream is over, its lanes with it.
//
// again: what has no answer is to be written to the next one, first and in order; with the same message_id it is taken
// once. Also what waits for an acknowledgement: the answer to its duplicate says how far it came. Else it fails with the
// error; what was never written is kept.
func (c *senderCore) streamEnded(failed *Error, again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	unfinished := c.lanes.unfinished()
	c.lanes = newLanes(c.limits.lanes)
	for _, p := range slices.Backward(unfinished) {
		if !again || p.abandoned {
			c.finish(p, failed.again(p.unanswered))
			continue
		}
		p.unanswered = true
		p.queued = c.queue.PushFront(p)
	}
}

// failAll gives up everything that is held.
func (c *senderCore) failAll(failed *Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.lanes.unfinished() {
		c.finish(p, failed.again(p.unanswered))
	}
	c.lanes = newLanes(c.limits.lanes)
	for place := c.queue.Front(); place != nil; place = place.Next() {
		p := place.Value.(*Pending)
		c.finish(p, failed.again(p.unanswered))
	}
	c.queue.Init()
	if c.timer != nil {
		c.timer.Stop()
	}
}

// finish settles a message of which nothing more will be known.
func (c *senderCore) finish(p *Pending, failed *Error) {
	p.settle(failed)
	c.leave(p)
}

func (c *senderCore) leave(p *Pending) {
	p.left = true
	c.inFlight--
	if c.inFlight == 0 && c.idle != nil {
		close(c.idle)
	}
	c.onLeft()
}

// Deadlines

// watch has that deadline kept. One timer is enough: it is set to the earliest, and most messages are answered by then.
func (c *senderCore) watch(deadline time.Time) {
	if !c.earliest.IsZero() && !deadline.Before(c.earliest) {
		return
	}
	c.earliest = deadline
	if c.timer == nil {
		c.timer = time.AfterFunc(time.Until(deadline), c.expire)
	} else {
		c.timer.Reset(time.Until(deadline))
	}
}

// expire tells those whose deadline has passed, and sets the timer to the next one.
func (c *senderCore) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.earliest = time.Time{}
	now := time.Now()
	unfinished := c.lanes.unfinished()
	for place := c.queue.Front(); place != nil; place = place.Next() {
		unfinished = append(unfinished, place.Value.(*Pending))
	}
	for _, p := range unfinished {
		switch {
		case p.abandoned:
		case p.deadline.After(now):
			c.watch(p.deadline)
		default:
			c.giveUp(p, deadlineExceeded().again(p.unanswered))
		}
	}
}
