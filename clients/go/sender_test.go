package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

func text(payload string) Message { return Text(payload) }

// numbered are the payloads "0" to "n - 1".
func numbered(n int) []string {
	made := make([]string, n)
	for i := range made {
		made[i] = strconv.Itoa(i)
	}
	return made
}

// sendAll begins to send those payloads, in order.
func sendAll(t testing.TB, s *Sender, payloads []string, options ...CallOption) []*Pending {
	t.Helper()
	made := make([]*Pending, len(payloads))
	for i, each := range payloads {
		made[i] = must[*Pending](t)(s.Send(within(t), "key", "token", text(each), options...))
	}
	return made
}

func TestMessagesGatherWhileAWriteIsUnderWay(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	d := &deliverer{answer: takesAll}
	s := serve(t, &scripted{deliver: func(stream apiv1.DeliveryService_DeliverServer) error {
		<-gate // nothing is read: flow control holds
		return d.serve(stream)
	}})
	sender := dial(t, s).Sender()
	large := string(make([]byte, 40_000))
	payloads := append([]string{large, large, large, large}, numbered(2_000)...)
	pending := sendAll(t, sender, payloads, Timeout(time.Minute))
	close(gate)
	for i, each := range pending {
		equal(t, must[Receipt](t)(each.Wait(within(t))).Sequence, uint64(i+1))
	}
	got, _, streams := d.seen()
	equal(t, streams, 1)
	equal(t, len(d.opened), 1)
	equal(t, len(d.frames) < 20, true)
	equal(t, slices.Max(d.frames) <= maxFrameItems, true)
	equal(t, got, payloads)
}

func TestAnIdleSenderWritesAtOnce(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: takesAll}
	sender := dial(t, serve(t, &scripted{deliver: d.serve})).Sender()
	for i := range 3 {
		pending := sendAll(t, sender, []string{"x"})
		receipt := must[Receipt](t)(pending[0].Wait(within(t)))
		equal(t, receipt.Sequence, uint64(i+1))
		<-pending[0].Done()
	}
	equal(t, d.frames, []int{1, 1, 1})
}

func TestAStreamThatBreaksIsOpenedAgainInOrderWithTheSameIDs(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: func(stream int, item *apiv1.DeliverRequest_LaneMessage, n uint64) *apiv1.DeliverResponse {
		switch {
		case stream == 1 && n == 0:
			return takesAll(stream, item, n)
		case stream == 1 && n < 3:
			return nil // no answer before the end
		case stream == 1:
			return breaks
		}
		return takesAll(stream, item, n)
	}}
	sender := dial(t, serve(t, &scripted{deliver: d.serve})).Sender()
	pending := sendAll(t, sender, numbered(10))
	for i, each := range pending {
		receipt := must[Receipt](t)(each.Wait(within(t)))
		equal(t, receipt.MessageID, each.message.GetMessageId())
		equal(t, i == 0 || receipt.Sequence == uint64(i), true)
	}
	payload, ids, streams := d.seen()
	equal(t, streams, 2)
	second := payload[slices.Index(payload[1:], "1")+1:]
	second = second[len(second)-9:]
	equal(t, second, numbered(10)[1:])
	for i, id := range ids[len(ids)-9:] {
		equal(t, id, pending[i+1].message.GetMessageId())
	}
}

func TestARefusalFailsItsMessageAlone(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: func(stream int, item *apiv1.DeliverRequest_LaneMessage, n uint64) *apiv1.DeliverResponse {
		if n == 1 {
			return refusalOn(item.GetLane(), n, refused(codes.ResourceExhausted, "OUTBOX_FULL", time.Second))
		}
		return takesAll(stream, item, n)
	}}
	sender := dial(t, serve(t, &scripted{deliver: d.serve})).Sender()
	pending := sendAll(t, sender, numbered(3))
	_, err := pending[1].Wait(within(t))
	equal(t, errors.Is(err, ErrOutboxFull), true)
	var failed *Error
	equal(t, errors.As(err, &failed) && failed.Definite() && failed.RetryAfter == time.Second, true)
	must[Receipt](t)(pending[0].Wait(within(t)))
	must[Receipt](t)(pending[2].Wait(within(t)))
	payload, _, _ := d.seen()
	equal(t, payload, numbered(3))
	equal(t, sender.InFlight(), 0)
}

func TestARefusalBehindALostAnswerIsNotDefinite(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: func(stream int, item *apiv1.DeliverRequest_LaneMessage, n uint64) *apiv1.DeliverResponse {
		if stream == 1 {
			return breaks
		}
		return refusalOn(item.GetLane(), n, refused(codes.NotFound, "MANAGER_GONE", 0))
	}}
	sender := dial(t, serve(t, &scripted{deliver: d.serve})).Sender()
	_, err := sendAll(t, sender, []string{"x"})[0].Wait(within(t))
	var failed *Error
	equal(t, errors.As(err, &failed) && failed.Reason == ErrManagerGone && !failed.Definite(), true)
}

func TestALaneErrorEndsThatLaneAlone(t *testing.T) {
	t.Parallel()
	d := &deliverer{}
	d.answer = func(stream int, item *apiv1.DeliverRequest_LaneMessage, n uint64) *apiv1.DeliverResponse {
		if item.GetLane() == 0 {
			return refusalOn(0, n, refused(codes.FailedPrecondition, "LANE_NOT_OPEN", 0))
		}
		return takesAll(stream, item, n)
	}
	s := serve(t, &scripted{deliver: func(stream apiv1.DeliveryService_DeliverServer) error {
		if err := stream.Send(&apiv1.DeliverResponse{Frame: &apiv1.DeliverResponse_LaneError_{
			LaneError: &apiv1.DeliverResponse_LaneError{Error: refused(codes.Unauthenticated, "TOKEN_EXPIRED", 0)},
		}}); err != nil {
			return err
		}
		return d.serve(stream)
	}})
	sender := dial(t, s).Sender()
	first := must[*Pending](t)(sender.Send(within(t), "key", "old", text("a")))
	other := must[*Pending](t)(sender.Send(within(t), "other", "token", text("b")))
	must[Receipt](t)(other.Wait(within(t)))
	_, err := first.Wait(within(t))
	equal(t, errors.Is(err, ErrTokenExpired), true)
	equal(t, errors.Is(err, ErrToken), true)
	// The lane is not used again: the same token gets one of its own.
	again := must[*Pending](t)(sender.Send(within(t), "key", "old", text("c")))
	must[Receipt](t)(again.Wait(within(t)))
	equal(t, d.opened[len(d.opened)-1].GetLane(), uint32(2))
}

func TestNoMoreThanMaxInFlightAndTheWaitCanBeCancelled(t *testing.T) {
	t.Parallel()
	answers := make(chan *apiv1.DeliverResponse, 1)
	d := &deliverer{answer: func(_ int, item *apiv1.DeliverRequest_LaneMessage, n uint64) *apiv1.DeliverResponse {
		if n == 0 {
			answers <- receiptOn(item.GetLane(), n, accepted(item.GetMessage(), 1))
		}
		return nil
	}}
	release := make(chan struct{})
	s := serve(t, &scripted{deliver: func(stream apiv1.DeliveryService_DeliverServer) error {
		go func() {
			<-release
			_ = stream.Send(<-answers)
		}()
		return d.serve(stream)
	}})
	sender := dial(t, s).Sender(MaxInFlight(2))
	sendAll(t, sender, numbered(2))
	ctx, cancel := context.WithCancel(context.Background())
	cancelled := make(chan error)
	go func() {
		_, err := sender.Send(ctx, "key", "token", text("x"))
		cancelled <- err
	}()
	cancel()
	err := soon(t, cancelled)
	equal(t, errors.Is(err, context.Canceled) && errors.Is(err, ErrTransport), true)
	_, err = sender.Send(within(t), "key", "token", text("x"), Timeout(time.Millisecond))
	equal(t, errors.Is(err, context.DeadlineExceeded), true)
	begun := make(chan error)
	go func() {
		_, err := sender.Send(context.Background(), "key", "token", text("2"))
		begun <- err
	}()
	close(release)
	equal(t, soon(t, begun), nil)
	equal(t, sender.InFlight(), 2)
}

func TestAMessageWithoutAnAnswerHasItsDeadline(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: func(int, *apiv1.DeliverRequest_LaneMessage, uint64) *apiv1.DeliverResponse { return nil }}
	sender := dial(t, serve(t, &scripted{deliver: d.serve})).Sender()
	late := sendAll(t, sender, []string{"x"})[0]
	_, err := sendAll(t, sender, []string{"y"}, Timeout(30*time.Millisecond))[0].Wait(within(t))
	var failed *Error
	equal(t, errors.As(err, &failed) && failed.Code == codes.DeadlineExceeded && !failed.Definite(), true)
	equal(t, errors.Is(err, context.DeadlineExceeded), true)
	select {
	case <-late.Done():
		t.Fatal("its own deadline is later")
	default:
	}
}

func TestWhatIsGivenUpUnwrittenIsNotSent(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: takesAll}
	gate := make(chan struct{})
	s := serve(t, &scripted{deliver: func(stream apiv1.DeliveryService_DeliverServer) error {
		<-gate
		return d.serve(stream)
	}})
	sender := dial(t, s).Sender()
	large := string(make([]byte, 600_000)) // a frame each, of which gRPC takes one and holds up the next
	before := sendAll(t, sender, []string{large, large, large, large}, Timeout(time.Minute))
	ctx, cancel := context.WithCancel(context.Background())
	given := must[*Pending](t)(sender.Send(ctx, "key", "token", text("never")))
	cancel()
	_, err := given.Wait(ctx)
	equal(t, errors.Is(err, context.Canceled), true)
	given.Cancel()
	given.Cancel()
	equal(t, sender.InFlight(), 4)
	after := sendAll(t, sender, []string{"after"})
	close(gate)
	for _, each := range append(before, after...) {
		must[Receipt](t)(each.Wait(within(t)))
	}
	payload, _, _ := d.seen()
	equal(t, slices.Contains(payload, "never"), false)
}

func TestWaitForAckIsToldOfAcknowledgementsAndLosses(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: takesAll}
	s := serve(t, &scripted{deliver: func(stream apiv1.DeliveryService_DeliverServer) error {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		equal(t, request.GetOpenLane().GetReportAcknowledged(), true)
		_ = stream.Send(&apiv1.DeliverResponse{Frame: &apiv1.DeliverResponse_Dropped_{
			Dropped: &apiv1.DeliverResponse_Dropped{From: 2, To: 2},
		}})
		_ = stream.Send(&apiv1.DeliverResponse{Frame: &apiv1.DeliverResponse_Acknowledged_{
			Acknowledged: &apiv1.DeliverResponse_Acknowledged{Sequence: 3},
		}})
		return d.serve(stream)
	}})
	client := dial(t, s)
	sender := client.Sender(ReportAcknowledged())
	pending := sendAll(t, sender, numbered(4)[:3], WaitForAck(5*time.Second))
	for i, want := range []DeliveryState{Acknowledged, Dropped, Acknowledged} {
		equal(t, must[Receipt](t)(pending[i].Wait(within(t))).State, want)
	}
	// Nobody acknowledges the fourth: it is accepted all the same.
	late := sendAll(t, sender, []string{"3"}, WaitForAck(20*time.Millisecond))[0]
	equal(t, must[Receipt](t)(late.Wait(within(t))).State, Written)
	equal(t, sender.InFlight(), 0)
	_, err := client.Sender().Send(within(t), "key", "token", text("x"), WaitForAck(time.Second))
	equal(t, err != nil, true)
}

func TestIdleLanesGiveWayToOtherTokens(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: takesAll}
	sender := dial(t, serve(t, &scripted{deliver: d.serve})).Sender(MaxLanes(2))
	for _, token := range []string{"a", "b", "a", "c", "b", "a"} {
		pending := must[*Pending](t)(sender.Send(within(t), "key", token, text(token), ExpectedUserID("alice")))
		must[Receipt](t)(pending.Wait(within(t)))
	}
	opened := make([]string, len(d.opened))
	for i, each := range d.opened {
		opened[i] = fmt.Sprint(each.GetContextToken(), each.GetLane(), each.GetExpectedUserId())
	}
	equal(t, opened, []string{"a0alice", "b1alice", "c2alice", "b3alice", "a4alice"})
	equal(t, d.closed, []uint32{1, 0, 2})
}

func TestACancelledStreamIsReported(t *testing.T) {
	t.Parallel()
	said := make(chan StreamCancellation)
	d := &deliverer{answer: func(_ int, item *apiv1.DeliverRequest_LaneMessage, _ uint64) *apiv1.DeliverResponse {
		return &apiv1.DeliverResponse{Frame: &apiv1.DeliverResponse_StreamCancelled_{
			StreamCancelled: &apiv1.DeliverResponse_StreamCancelled{Lane: item.GetLane(), StreamId: "s", ReplyTo: "q"},
		}}
	}}
	s := serve(t, &scripted{deliver: d.serve})
	sender := dial(t, s).Sender(OnStreamCancelled(func(each StreamCancellation) {
		select {
		case said <- each:
		case <-t.Context().Done():
		}
	}))
	sendAll(t, sender, []string{"x"})
	equal(t, soon(t, said), StreamCancellation{"key", "s", "q"})
}

func TestCloseWritesWhatIsQueuedAndWaitsForTheReceipts(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: takesAll}
	sender := dial(t, serve(t, &scripted{deliver: d.serve})).Sender()
	pending := sendAll(t, sender, numbered(500))
	_ = sender.Close()
	_ = sender.Close()
	for _, each := range pending {
		must[Receipt](t)(each.Wait(within(t)))
	}
	_, err := sender.Send(within(t), "key", "token", text("late"))
	equal(t, errors.Is(err, ErrClosed), true)
}

// closesWithin closes it, which takes less than that.
func closesWithin(t *testing.T, bound time.Duration, it io.Closer) {
	t.Helper()
	closed := make(chan struct{})
	began := time.Now()
	go func() { defer close(closed); _ = it.Close() }()
	soon(t, closed)
	if took := time.Since(began); took >= bound {
		t.Fatalf("it took %v", took)
	}
}

func TestCloseFailsTheRestAfterItsBound(t *testing.T) {
	t.Parallel()
	client := dial(t, &scripted{target: "127.0.0.1:1"}) // nobody is there
	var pending []*Pending
	for range 3 { // side by side
		pending = append(pending, sendAll(t, client.Sender(), []string{"x"}, Timeout(time.Minute))...)
	}
	closesWithin(t, closeTimeout+2*time.Second, client)
	for _, each := range pending {
		_, err := each.Wait(within(t))
		var failed *Error
		equal(t, errors.As(err, &failed) && failed.Code == codes.Canceled && errors.Is(err, ErrClosed), true)
	}
}

func TestCloseWithNothingToDoTakesNoTimeWhileNobodyIsThere(t *testing.T) {
	t.Parallel()
	client := dial(t, &scripted{target: "127.0.0.1:1"})
	for range 3 {
		_, err := sendAll(t, client.Sender(), []string{"x"}, Timeout(50*time.Millisecond))[0].Wait(within(t))
		equal(t, errors.Is(err, context.DeadlineExceeded), true)
	}
	closesWithin(t, closeTimeout/2, client)
}

func TestCloseWithNothingToDoDoesNotWaitForAStreamThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: takesAll}
	client := dial(t, serve(t, &scripted{deliver: func(stream apiv1.DeliveryService_DeliverServer) error {
		_ = d.serve(stream)
		<-stream.Context().Done() // half-closed, as where the connection is dead
		return nil
	}}))
	must[Receipt](t)(sendAll(t, client.Sender(), []string{"x"})[0].Wait(within(t)))
	closesWithin(t, closeTimeout/2, client)
}

func TestCloseEndsWithTheDeadlineOfTheLastMessage(t *testing.T) {
	t.Parallel()
	sender := dial(t, &scripted{target: "127.0.0.1:1"}).Sender()
	pending := sendAll(t, sender, []string{"x"}, Timeout(300*time.Millisecond))[0]
	closesWithin(t, closeTimeout/2, sender)
	_, err := pending.Wait(within(t))
	equal(t, errors.Is(err, context.DeadlineExceeded), true)
}

func TestWhatCannotBeSentCostsNobodyAnything(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: takesAll}
	sender := dial(t, serve(t, &scripted{deliver: d.serve})).Sender()
	for _, each := range []struct {
		key, token string
		message    Message
		want       error
	}{
		{"k\xff", "t", text("x"), ErrBadRequest},
		{"k", "t\n", text("x"), ErrTokenInvalid},
		{"k", "t", Message{EventType: "\xff"}, ErrBadRequest},
		{"k", "t", JSON(func() {}), ErrBadRequest},
		{"k", "t", Binary(make([]byte, maxMessageBytes)), ErrBadRequest},
	} {
		_, err := sender.Send(within(t), each.key, each.token, each.message)
		equal(t, errors.Is(err, each.want), true)
	}
	equal(t, sender.InFlight(), 0)
	must[Receipt](t)(sendAll(t, sender, []string{"good"})[0].Wait(within(t)))
}

func TestNothingThatIsPrintedHasAToken(t *testing.T) {
	t.Parallel()
	d := &deliverer{answer: takesAll}
	sender := dial(t, serve(t, &scripted{deliver: d.serve}), WithServiceToken("s3cret")).Sender()
	pending := must[*Pending](t)(sender.Send(within(t), "key", "s3cret", text("x")))
	must[Receipt](t)(pending.Wait(within(t)))
	for _, each := range []any{pending, sender, sender.client, BatchItem{ContextToken: "s3cret"}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			equal(t, strings.Contains(fmt.Sprintf(verb, each), "s3cret"), false)
		}
	}
}

func BenchmarkSender(b *testing.B) {
	var frames atomic.Int64
	s := serve(b, &scripted{deliver: func(stream apiv1.DeliveryService_DeliverServer) error {
		places := map[uint32]uint64{}
		for {
			request, err := stream.Recv()
			if err != nil {
				return nil
			}
			said := request.GetMessages().GetItems()
			if len(said) == 0 {
				continue
			}
			frames.Add(1)
			items := make([]*apiv1.DeliverResponse_LaneReceipt, len(said))
			for i, item := range said {
				items[i] = &apiv1.DeliverResponse_LaneReceipt{
					Lane: item.GetLane(), Number: places[item.GetLane()],
					Result: &apiv1.DeliverResponse_LaneReceipt_Receipt{Receipt: accepted(item.GetMessage(), 1)},
				}
				places[item.GetLane()]++
			}
			if stream.Send(receipts(items...)) != nil {
				return nil
			}
		}
	}})
	sender := dial(b, s).Sender()
	payload := Binary(make([]byte, 128))
	token := string(make([]byte, 0))
	for range 600 {
		token += "t"
	}
	tokens := make([]string, 100)
	for i := range tokens {
		tokens[i] = token + strconv.Itoa(i)
	}
	b.ReportAllocs()
	var ring [4_096]*Pending
	for i := 0; b.Loop(); i++ {
		if before := ring[i%len(ring)]; before != nil {
			if _, err := before.Wait(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
		pending, err := sender.Send(context.Background(), "key", tokens[i%100], payload)
		if err != nil {
			b.Fatal(err)
		}
		ring[i%len(ring)] = pending
	}
	b.ReportMetric(float64(b.N)/float64(frames.Load()), "messages/frame")
}
