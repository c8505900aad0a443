package sidecar

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// scripted is a gRPC server that answers by a script: for what no real sidecar does on command, such as to refuse once
// only.
type scripted struct {
	apiv1.UnimplementedDeliveryServiceServer
	apiv1.UnimplementedContextServiceServer
	apiv1.UnimplementedAgentServiceServer

	target string
	server *grpc.Server

	sendToUser   func(context.Context, *apiv1.SendToUserRequest) (*apiv1.SendToUserResponse, error)
	emit         func(context.Context, *apiv1.EmitCriticalEventRequest) (*apiv1.EmitCriticalEventResponse, error)
	sendBatch    func(context.Context, *apiv1.SendBatchRequest) (*apiv1.SendBatchResponse, error)
	closeManager func(context.Context, *apiv1.CloseManagerRequest) (*apiv1.CloseManagerResponse, error)
	refresh      func(context.Context, string) (*apiv1.RefreshContextTokenResponse, error)
	exchange     func(context.Context) (*apiv1.ExchangeContextTokenResponse, error)
	deliver      func(apiv1.DeliveryService_DeliverServer) error
	attach       func(apiv1.AgentService_AttachServer) error
}

func (s *scripted) SendToUser(ctx context.Context, r *apiv1.SendToUserRequest) (*apiv1.SendToUserResponse, error) {
	return s.sendToUser(ctx, r)
}

func (s *scripted) EmitCriticalEvent(
	ctx context.Context, r *apiv1.EmitCriticalEventRequest,
) (*apiv1.EmitCriticalEventResponse, error) {
	return s.emit(ctx, r)
}

func (s *scripted) SendBatch(ctx context.Context, r *apiv1.SendBatchRequest) (*apiv1.SendBatchResponse, error) {
	return s.sendBatch(ctx, r)
}

func (s *scripted) CloseManager(
	ctx context.Context, r *apiv1.CloseManagerRequest,
) (*apiv1.CloseManagerResponse, error) {
	return s.closeManager(ctx, r)
}

func (s *scripted) RefreshContextToken(
	ctx context.Context, _ *apiv1.RefreshContextTokenRequest,
) (*apiv1.RefreshContextTokenResponse, error) {
	return s.refresh(ctx, sent(ctx, contextTokenKey))
}

func (s *scripted) ExchangeContextToken(
	ctx context.Context, _ *apiv1.ExchangeContextTokenRequest,
) (*apiv1.ExchangeContextTokenResponse, error) {
	return s.exchange(ctx)
}

func (s *scripted) Deliver(stream apiv1.DeliveryService_DeliverServer) error {
	return s.deliver(stream)
}

func (s *scripted) Attach(stream apiv1.AgentService_AttachServer) error { return s.attach(stream) }

// serve starts the server on a port of its own, for as long as the test lasts.
func serve(t testing.TB, s *scripted, options ...grpc.ServerOption) *scripted {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.target = listener.Addr().String()
	serveOn(t, s, listener, options...)
	return s
}

func serveOn(t testing.TB, s *scripted, listener net.Listener, options ...grpc.ServerOption) {
	s.server = grpc.NewServer(append([]grpc.ServerOption{
		// As the sidecar: pings every 10 s are welcome. What is not read holds the writer back.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.StaticStreamWindowSize(65_536), grpc.StaticConnWindowSize(65_536),
	}, options...)...)
	apiv1.RegisterDeliveryServiceServer(s.server, s)
	apiv1.RegisterContextServiceServer(s.server, s)
	apiv1.RegisterAgentServiceServer(s.server, s)
	go func() { _ = s.server.Serve(listener) }()
	t.Cleanup(s.server.Stop)
}

// dial is a client of that server, closed with the test.
func dial(t testing.TB, s *scripted, options ...Option) *Client {
	t.Helper()
	client, err := NewClient(append([]Option{WithEndpoint(s.target), WithServiceToken("")}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// sent is the metadata of that name that a call came with.
func sent(ctx context.Context, name string) string {
	came, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(came.Get(name), ",")
}

// refused is a refusal as the sidecar says it.
func refused(code codes.Code, reason string, retryAfter time.Duration) *spb.Status {
	made := &spb.Status{Code: int32(code), Message: "a fixed text"}
	add := func(detail proto.Message) {
		packed, err := anypb.New(detail)
		if err != nil {
			panic(err)
		}
		made.Details = append(made.Details, packed)
	}
	add(&errdetails.ErrorInfo{Reason: reason, Domain: domain, Metadata: map[string]string{"incident_id": "i-1"}})
	if retryAfter > 0 {
		add(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
	}
	return made
}

func failure(code codes.Code, reason string, retryAfter time.Duration) error {
	return status.ErrorProto(refused(code, reason, retryAfter))
}

func accepted(message *apiv1.Message, sequence uint64) *apiv1.Receipt {
	return &apiv1.Receipt{
		MessageId:  message.GetMessageId(),
		Sequence:   sequence,
		State:      apiv1.DeliveryState_DELIVERY_STATE_WRITTEN,
		Durability: apiv1.Durability_DURABILITY_MEMORY,
	}
}

// receiptOn answers one item of a lane.
func receiptOn(laneNumber uint32, number uint64, receipt *apiv1.Receipt) *apiv1.DeliverResponse {
	return receipts(&apiv1.DeliverResponse_LaneReceipt{
		Lane: laneNumber, Number: number, Result: &apiv1.DeliverResponse_LaneReceipt_Receipt{Receipt: receipt},
	})
}

func refusalOn(laneNumber uint32, number uint64, refusal *spb.Status) *apiv1.DeliverResponse {
	return receipts(&apiv1.DeliverResponse_LaneReceipt{
		Lane: laneNumber, Number: number, Result: &apiv1.DeliverResponse_LaneReceipt_Error{Error: refusal},
	})
}

func receipts(items ...*apiv1.DeliverResponse_LaneReceipt) *apiv1.DeliverResponse {
	return &apiv1.DeliverResponse{Frame: &apiv1.DeliverResponse_Receipts_{
		Receipts: &apiv1.DeliverResponse_Receipts{Items: items},
	}}
}

// deliverer plays the sidecar's side of Deliver streams: each message is answered by `answer`, nil for no answer.
type deliverer struct {
	answer func(stream int, item *apiv1.DeliverRequest_LaneMessage, number uint64) *apiv1.DeliverResponse

	mu      sync.Mutex
	streams int
	opened  []*apiv1.DeliverRequest_OpenLane
	closed  []uint32
	frames  []int
	payload []string // of every message that came, in order
	ids     []string
}

// errBreak ends a stream as a lost connection does.
var errBreak = status.Error(codes.Unavailable, "lost")

func (d *deliverer) serve(stream apiv1.DeliveryService_DeliverServer) error {
	d.mu.Lock()
	d.streams++
	number := d.streams
	d.mu.Unlock()
	places := map[uint32]uint64{}
	for {
		request, err := stream.Recv()
		if err != nil {
			return nil // half-closed
		}
		for _, answer := range d.take(number, request, places) {
			if answer == nil {
				return errBreak
			}
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
	}
}

func (d *deliverer) take(
	stream int, request *apiv1.DeliverRequest, places map[uint32]uint64,
) (answers []*apiv1.DeliverResponse) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch frame := request.GetFrame().(type) {
	case *apiv1.DeliverRequest_OpenLane_:
		d.opened = append(d.opened, frame.OpenLane)
	case *apiv1.DeliverRequest_CloseLane_:
		d.closed = append(d.closed, frame.CloseLane.GetLane())
	case *apiv1.DeliverRequest_Messages_:
		d.frames = append(d.frames, len(frame.Messages.GetItems()))
		for _, item := range frame.Messages.GetItems() {
			d.payload = append(d.payload, string(item.GetMessage().GetPayload()))
			d.ids = append(d.ids, item.GetMessage().GetMessageId())
			number := places[item.GetLane()]
			places[item.GetLane()]++
			answer := d.answer(stream, item, number)
			if answer == breaks {
				return append(answers, nil)
			}
			if answer != nil {
				answers = append(answers, answer)
			}
		}
	}
	return answers
}

func (d *deliverer) seen() (payload, ids []string, streams int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string{}, d.payload...), append([]string{}, d.ids...), d.streams
}

// breaks as an answer has the stream break.
var breaks = &apiv1.DeliverResponse{}

// takesAll accepts every message.
func takesAll(_ int, item *apiv1.DeliverRequest_LaneMessage, number uint64) *apiv1.DeliverResponse {
	return receiptOn(item.GetLane(), number, accepted(item.GetMessage(), number+1))
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// soon waits for what must come.
func soon[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(patience):
		t.Fatal("it did not come")
		panic("unreachable")
	}
}

func must[T any](t testing.TB) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func equal[T any](t testing.TB, got, want T) {
	t.Helper()
	if fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

// TestMain fails where the client has left a goroutine behind in any test.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := goroutinesOfClient(); code == 0 && left != "" {
		fmt.Println("goroutines are left:\n" + left)
		code = 1
	}
	os.Exit(code)
}

// goroutinesOfClient are those that run the client's code once they had time to end.
func goroutinesOfClient() string {
	var left []string
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		left = nil
		all := make([]byte, 4<<20)
		for _, each := range strings.Split(string(all[:runtime.Stack(all, true)]), "\n\n") {
			ours := strings.Contains(each, "ws-sidecar.dev/client.(") && !strings.Contains(each, "goroutinesOfClient")
			if ours || strings.Contains(each, "grpc.(*ClientConn)") {
				left = append(left, each)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			return strings.Join(left, "\n\n")
		}
	}
}
