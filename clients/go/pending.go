package sidecar

import (
	"container/list"
	"context"
	"time"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

// Pending is a message on its way through a [Sender], and its receipt to be. All of it is guarded by its core's mutex,
// but for what is set when it is made.
type Pending struct {
	core    *senderCore
	key     laneKey
	message *apiv1.Message
	size    int
	holds   bool          // it waits for the client's acknowledgement,
	hold    time.Duration // so long from its acceptance

	order    uint64        // its place among all, kept when it is sent again
	queued   *list.Element // its place among those to be written; nil once it was
	deadline time.Time     // when whoever waits is told that it was too long

	accepted   bool
	lane       *lane // where it waits for the client's acknowledgement
	receipt    Receipt
	unanswered bool // written to a stream that ended before the answer
	abandoned  bool // nobody waits for it any more
	left       bool // nothing of it is held any more

	settled bool
	err     *Error
	done    chan struct{} // made when it is asked for
}

// String tells which message it is, and no token.
func (p *Pending) String() string { return "sidecar.Pending(" + p.message.GetMessageId() + ")" }

// GoString is String: what it goes by is a secret.
func (p *Pending) GoString() string { return p.String() }

// Done is closed when the outcome is there; Wait then returns at once.
func (p *Pending) Done() <-chan struct{} {
	p.core.mu.Lock()
	defer p.core.mu.Unlock()
	if p.done == nil {
		p.done = make(chan struct{})
		if p.settled {
			close(p.done)
		}
	}
	return p.done
}

// Wait returns the receipt once the message was accepted; of one that was sent with WaitForAck once it is acknowledged or
// dropped, or that time is over. The error is an [*Error]: the sidecar's refusal, or ErrTransport when the message's
// deadline passed. When ctx ends first only the waiting does: see Cancel.
func (p *Pending) Wait(ctx context.Context) (Receipt, error) {
	if receipt, err, ok := p.outcome(); ok {
		return receipt, err
	}
	select {
	case <-p.Done():
		receipt, err, _ := p.outcome()
		return receipt, err
	case <-ctx.Done():
		return Receipt{}, errorFromContext(ctx)
	}
}

// Cancel gives the message up: one that was not written yet is not sent, one that was may have been accepted. Idempotent.
func (p *Pending) Cancel() { p.core.cancel(p) }

func (p *Pending) outcome() (Receipt, error, bool) {
	p.core.mu.Lock()
	defer p.core.mu.Unlock()
	if !p.settled {
		return Receipt{}, nil, false
	}
	if p.err != nil {
		return Receipt{}, p.err, true
	}
	return p.receipt, nil, true
}

// accept takes the receipt; the first one counts, but for its state.
func (p *Pending) accept(receipt Receipt) {
	if p.accepted {
		p.receipt.State = receipt.State
		return
	}
	p.accepted, p.receipt = true, receipt
	if p.holds {
		p.deadline = time.Now().Add(p.hold)
	}
}

// settle tells the outcome. What was accepted stays so, whatever comes later.
func (p *Pending) settle(failed *Error) {
	if p.settled {
		return
	}
	p.settled = true
	if !p.accepted {
		p.err = failed
	}
	if p.done != nil {
		close(p.done)
	}
}
