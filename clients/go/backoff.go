package sidecar

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	retryBase = 50 * time.Millisecond
	retryCap  = 2 * time.Second

	maxDoublings = 32
)

// backOff says how long to wait before the next try: uniformly between 0 and a bound that doubles with every try, so
// that many clients do not come back at once.
type backOff struct {
	base, cap time.Duration
	uniform   func() float64 // numbers of [0, 1)
	tries     int
}

func newBackOff(base, cap time.Duration) *backOff {
	return &backOff{base: base, cap: cap, uniform: rand.Float64}
}

// next is the time to wait; what somebody asked for is added, not shortened.
func (b *backOff) next(atLeast time.Duration) time.Duration {
	bound := b.cap
	if b.tries <= maxDoublings && b.base<<b.tries < bound {
		bound = b.base << b.tries
	}
	b.tries++
	return atLeast + time.Duration(float64(bound)*b.uniform())
}

// reset is for when it went well.
func (b *backOff) reset() { b.tries = 0 }

// sleep waits so long; false where the context or `closed` ended first.
func sleep(ctx context.Context, closed <-chan struct{}, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-closed:
	}
	return false
}
