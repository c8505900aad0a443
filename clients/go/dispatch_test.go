package sidecar

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// dispatching is a dispatcher whose handlers end when they are told to, in a bubble of its own time.
type dispatching struct {
	*dispatcher
	said  []string // acknowledged since it was last asked
	room  int
	begun []string
	gates map[string]chan struct{}
}

func newDispatching(patience time.Duration) *dispatching {
	made := &dispatching{gates: make(map[string]chan struct{})}
	made.dispatcher = newDispatcher(
		func() { made.room++ }, func(deliveryID string) { made.said = append(made.said, deliveryID) }, patience,
		slog.New(slog.NewTextHandler(io.Discard, nil)))
	return made
}

// receives hands it events of one context.
func (d *dispatching) receives(key string, ids ...string) {
	for _, id := range ids {
		gate := make(chan struct{})
		d.gates[id] = gate
		d.receive(&handling{
			deliveryID: id, key: key, answering: newAnswering(context.Background()),
			handle: func(context.Context) error {
				d.mu.Lock()
				d.begun = append(d.begun, id)
				d.mu.Unlock()
				<-gate
				return nil
			},
		})
	}
	synctest.Wait()
}

// ends has handlers end.
func (d *dispatching) ends(ids ...string) {
	for _, id := range ids {
		close(d.gates[id])
		synctest.Wait()
	}
}

// acknowledged is what it has said since it was last asked.
func (d *dispatching) acknowledged() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	said := d.said
	d.said = nil
	return said
}

func idsOf(handlings []*handling) (ids []string) {
	for _, h := range handlings {
		ids = append(ids, h.deliveryID)
	}
	return ids
}

func TestWhatWaitsStaysTheSidecarsUntilItIsBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDispatching(time.Hour)
		d.receives("k", "a", "b", "c")
		equal(t, d.acknowledged(), []string{"a"})
		equal(t, d.room, 2)
		d.ends("a")
		equal(t, d.acknowledged(), []string{"b"})
		d.ends("b", "c")
		equal(t, d.acknowledged(), []string{"c"})
		equal(t, d.room, 3)
		d.leave()
		d.receives("k", "d")
		time.Sleep(2 * time.Hour)
		equal(t, len(d.acknowledged()), 0) // it takes no more
		equal(t, d.begun, []string{"a", "b", "c"})
	})
}

func TestWhatWaitsForLongIsAcknowledgedBeforeAnotherWorkerIsGivenIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDispatching((&registration{ackTimeout: 20 * time.Second}).patience())
		d.receives("k", "a", "b")
		time.Sleep(9 * time.Second)
		d.receives("k", "c")
		equal(t, d.acknowledged(), []string{"a"})
		time.Sleep(2 * time.Second)
		equal(t, d.acknowledged(), []string{"b"})
		equal(t, idsOf(d.giveBack()), []string{"c"})
		d.ends("a", "b")
		time.Sleep(time.Hour)
		equal(t, len(d.acknowledged()), 0)
		equal(t, d.begun, []string{"a", "b"})
		d.receives("l", "d", "e", "f", "g")
		d.waitedLong(d.waiting["l"][1]) // the timers of one moment fire in any order
		equal(t, d.acknowledged(), []string{"d", "e", "f"})
		time.Sleep(11 * time.Second)
		equal(t, d.acknowledged(), []string{"g"})
		d.ends("d", "e", "f", "g")
	})
	equal(t, (&registration{}).patience(), 30*time.Second)
}

func TestWhatIsGivenBackIsWhatWasNotAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDispatching(time.Second)
		d.receives("k", "a", "b", "c", "d")
		d.receives("l", "e")
		equal(t, d.acknowledged(), []string{"a", "e"})
		d.ownAgain("k", "c")
		d.ownAgain("l", "b") // of a context that has none of that id
		equal(t, d.acknowledged(), []string{"c", "b"})
		given := d.giveBack()
		equal(t, idsOf(given), []string{"b", "d"})
		d.waitedLong(given[0]) // its timer had fired by then
		time.Sleep(time.Hour)
		equal(t, len(d.acknowledged()), 0)
		d.ends("a", "c", "e")
		equal(t, d.begun, []string{"a", "e", "c"})
		d.receives("k", "f", "b") // it comes again
		equal(t, d.acknowledged(), []string{"f"})
		d.leave()
		d.ownAgain("k", "b") // it was on its way when all was given back: another has it
		time.Sleep(time.Hour)
		equal(t, len(d.acknowledged()), 0)
		d.ends("f")
		equal(t, d.begun, []string{"a", "e", "c", "f"})
		equal(t, d.awaitIdle(t.Context().Done()), true)
	})
}
