package sidecar

import (
	"container/list"
	"slices"
)

const maxRememberedGaps = 64

// laneKey is what opens a lane. The token is a secret: a key is never printed.
//
// A lane is opened by one token and carries only what was sent by that token. Renewing the token of an open lane would
// save a number; but messages that follow a refused renewal would go out by the token before, which is not theirs.
type laneKey struct {
	isolationKey   string
	contextToken   string
	expectedUserID string
}

// lane is one numbered lane of a stream.
type lane struct {
	number  uint32
	key     laneKey
	first   uint64     // the number of pending[0] in the lane
	pending []*Pending // written and not answered, in order; nil where one in between was answered
	waiting []*Pending // accepted, and waiting for the client's acknowledgement
	err     *Error     // why it has ended
	place   *list.Element

	position uint64 // what the client has acknowledged
	gaps     [][2]uint64
}

// idle reports whether nothing waits for it.
func (l *lane) idle() bool { return len(l.pending) == 0 && len(l.waiting) == 0 }

// answered takes out the message of that number; nil where none waits for an answer.
func (l *lane) answered(number uint64) *Pending {
	if number < l.first || number-l.first >= uint64(len(l.pending)) {
		return nil
	}
	i := number - l.first
	found := l.pending[i]
	l.pending[i] = nil
	for len(l.pending) > 0 && l.pending[0] == nil {
		l.pending = l.pending[1:]
		l.first++
	}
	return found
}

// fateOf is what the lane was told of that sequence; false: nothing yet.
func (l *lane) fateOf(sequence uint64) (DeliveryState, bool) {
	for _, gap := range l.gaps {
		if gap[0] <= sequence && sequence <= gap[1] {
			return Dropped, true
		}
	}
	return Acknowledged, sequence <= l.position
}

func (l *lane) dropped(first, last uint64) {
	if len(l.gaps) == maxRememberedGaps {
		l.gaps = slices.Delete(l.gaps, 0, 1)
	}
	l.gaps = append(l.gaps, [2]uint64{first, last})
}

// lanes are the open ones by what opened them, and those that still have answers to get.
type lanes struct {
	most     int
	open     map[laneKey]*lane
	byUse    *list.List // the open ones, least recently used first
	byNumber map[uint32]*lane
	next     uint32
}

func newLanes(most int) *lanes {
	return &lanes{most: most, open: make(map[laneKey]*lane), byUse: list.New(), byNumber: make(map[uint32]*lane)}
}

// find is the open lane of that key, used now; nil where there is none.
func (ls *lanes) find(key laneKey) *lane {
	found := ls.open[key]
	if found != nil {
		ls.byUse.MoveToBack(found.place)
	}
	return found
}

// full reports whether no further lane may be opened before one is closed.
func (ls *lanes) full() bool { return len(ls.open) >= ls.most }

// add opens a lane; numbers are not used twice on a stream.
func (ls *lanes) add(key laneKey) *lane {
	made := &lane{number: ls.next, key: key}
	made.place = ls.byUse.PushBack(made)
	ls.open[key], ls.byNumber[made.number] = made, made
	ls.next++
	return made
}

// closeLeastRecent closes the idle lane that was not used for longest; nil when all are busy.
func (ls *lanes) closeLeastRecent() *lane {
	for place := ls.byUse.Front(); place != nil; place = place.Next() {
		if found := place.Value.(*lane); found.idle() {
			ls.shut(found)
			return found
		}
	}
	return nil
}

// shut takes the lane out of the open ones; its answers still come.
func (ls *lanes) shut(l *lane) {
	if ls.open[l.key] == l {
		delete(ls.open, l.key)
		ls.byUse.Remove(l.place)
	}
	ls.forgetIfOver(l)
}

// forgetIfOver drops a lane that is not open and has nothing to get.
func (ls *lanes) forgetIfOver(l *lane) {
	if l.idle() && ls.open[l.key] != l {
		delete(ls.byNumber, l.number)
	}
}

// unfinished is all that was written and has no answer, or no final one, in its first order.
func (ls *lanes) unfinished() []*Pending {
	var found []*Pending
	for _, l := range ls.byNumber {
		for _, p := range l.pending {
			if p != nil {
				found = append(found, p)
			}
		}
		found = append(found, l.waiting...)
	}
	slices.SortFunc(found, func(a, b *Pending) int {
		if a.order < b.order {
			return -1
		}
		return 1
	})
	return found
}
