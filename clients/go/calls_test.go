package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

// acts answers SendToUser act by act, the last one for ever, and remembers what came.
type acts struct {
	mu       sync.Mutex
	requests []*apiv1.SendToUserRequest
	left     []time.Duration // until the deadline of each try
	came     chan struct{}
}

// seen is what has come so far, and how long each had left.
func (a *acts) seen() ([]*apiv1.SendToUserRequest, []time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests, a.left
}

func (a *acts) play(script ...func(context.Context) error) *scripted {
	a.came = make(chan struct{}, 100)
	return &scripted{sendToUser: func(
		ctx context.Context, r *apiv1.SendToUserRequest,
	) (*apiv1.SendToUserResponse, error) {
		a.mu.Lock()
		act := script[min(len(a.requests), len(script)-1)]
		a.requests = append(a.requests, r)
		deadline, _ := ctx.Deadline()
		a.left = append(a.left, time.Until(deadline))
		a.mu.Unlock()
		a.came <- struct{}{}
		if err := act(ctx); err != nil {
			return nil, err
		}
		return &apiv1.SendToUserResponse{Receipt: accepted(r.GetMessage(), 1)}, nil
	}}
}

func takes(context.Context) error { return nil }

func refuses(code codes.Code, reason string, retryAfter time.Duration) func(context.Context) error {
	return func(context.Context) error { return failure(code, reason, retryAfter) }
}

func hangs(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func sendOne(t testing.TB, c *Client, options ...CallOption) (Receipt, error) {
	t.Helper()
	return c.SendToUser(within(t), "key", "token", JSON("x"), append(options, ExpectedUserID("alice"))...)
}

func TestUnavailableIsTriedAgainWithTheSameID(t *testing.T) {
	t.Parallel()
	var a acts
	unavailable := refuses(codes.Unavailable, "STORAGE_UNAVAILABLE", 20*time.Millisecond)
	s := serve(t, a.play(unavailable, refuses(codes.Unavailable, "OUTCOME_UNKNOWN", time.Millisecond), takes))
	began := time.Now()
	receipt := must[Receipt](t)(sendOne(t, dial(t, s)))
	equal(t, time.Since(began) >= 20*time.Millisecond, true)
	requests, _ := a.seen()
	equal(t, len(requests), 3)
	for _, each := range requests {
		equal(t, each.GetMessage().GetMessageId(), receipt.MessageID)
		equal(t, each.GetExpectedUserId(), "alice")
	}
	equal(t, len(receipt.MessageID), 32)
}

func TestNoMoreThanFourTries(t *testing.T) {
	t.Parallel()
	var a acts
	s := serve(t, a.play(refuses(codes.Unavailable, "DRAINING", time.Millisecond)))
	_, err := sendOne(t, dial(t, s))
	equal(t, errors.Is(err, ErrDraining), true)
	requests, _ := a.seen()
	equal(t, len(requests), 4)
}

func TestOneDeadlineOverAllTries(t *testing.T) {
	t.Parallel()
	var a acts
	// After more than half of it: a second try is in time, and a third is not begun, however slow the machine is.
	s := serve(t, a.play(refuses(codes.Unavailable, "DRAINING", 600*time.Millisecond)))
	client := dial(t, s, WithDefaultTimeout(time.Second), WithMaxAttempts(100))
	began := time.Now()
	_, err := client.SendToUser(context.Background(), "key", "token", JSON(1))
	equal(t, time.Since(began) < 2*time.Second, true)
	equal(t, errors.Is(err, ErrDraining), true) // what a further try would say after the deadline is worth less
	_, left := a.seen()
	equal(t, len(left) == 2 && left[1] < left[0]-30*time.Millisecond, true)
}

func TestATryAfterTheDeadlineIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	var a acts
	client := dial(t, serve(t, a.play(refuses(codes.Unavailable, "DRAINING", time.Hour))))
	answered := make(chan error, 1)
	go func() {
		_, err := client.SendToUser(context.Background(), "key", "token", JSON(1), Timeout(time.Minute))
		answered <- err
	}()
	equal(t, errors.Is(soon(t, answered), ErrDraining), true)
}

func TestADeadlineThatPassedIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	var a acts
	client := dial(t, serve(t, a.play(hangs)))
	_, err := sendOne(t, client, Timeout(500*time.Millisecond))
	soon(t, a.came)
	var failed *Error
	equal(t, errors.As(err, &failed) && failed.Code == codes.DeadlineExceeded && !failed.Definite(), true)
	equal(t, errors.Is(err, context.DeadlineExceeded) && errors.Is(err, ErrTransport), true)
	requests, _ := a.seen()
	equal(t, len(requests), 1)
}

func TestTheContextsDeadlineIsTheCalls(t *testing.T) {
	t.Parallel()
	var a acts
	client := dial(t, serve(t, a.play(takes)))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	must[Receipt](t)(client.SendToUser(ctx, "k", "t", JSON(1)))
	must[Receipt](t)(client.SendToUser(context.Background(), "k", "t", JSON(1)))
	must[Receipt](t)(client.SendToUser(context.Background(), "k", "t", JSON(1), WaitForAck(20*time.Second)))
	requests, left := a.seen()
	equal(t, left[0] > 50*time.Second, true)
	equal(t, left[1] > 4*time.Second && left[1] <= 5*time.Second, true)
	equal(t, left[2] > 24*time.Second && left[2] <= 25*time.Second, true)
	equal(t, requests[2].GetWaitForAck().AsDuration(), 20*time.Second)
}

func TestWhatIsOverALimitIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	var a acts
	client := dial(t, serve(t, a.play(refuses(codes.ResourceExhausted, "OUTBOX_FULL", time.Second))))
	_, err := sendOne(t, client)
	var failed *Error
	equal(t, errors.As(err, &failed) && failed.Reason == ErrOutboxFull, true)
	equal(t, failed.RetryAfter, time.Second)
	requests, _ := a.seen()
	equal(t, len(requests), 1)
}

func TestWhatCannotBeRepeatedIsNot(t *testing.T) {
	t.Parallel()
	calls := 0
	down := failure(codes.Unavailable, "DRAINING", time.Millisecond)
	s := serve(t, &scripted{
		closeManager: func(context.Context, *apiv1.CloseManagerRequest) (*apiv1.CloseManagerResponse, error) {
			calls++
			return nil, down
		},
		refresh: func(context.Context, string) (*apiv1.RefreshContextTokenResponse, error) {
			calls++
			return nil, down
		},
		exchange: func(context.Context) (*apiv1.ExchangeContextTokenResponse, error) {
			calls++
			return nil, down
		},
	})
	client := dial(t, s)
	_, closed := client.CloseManager(within(t), "key", "token")
	_, refreshed := client.RefreshContextToken(within(t), "token")
	_, exchanged := client.ExchangeContextToken(within(t), "user", "c-1", nil)
	for _, err := range []error{closed, refreshed, exchanged} {
		equal(t, errors.Is(err, ErrDraining), true)
	}
	equal(t, calls, 3)
}

func TestARefusalAfterATryWithoutAnAnswerIsNotDefinite(t *testing.T) {
	t.Parallel()
	var a acts
	client := dial(t, serve(t, a.play(
		refuses(codes.Unavailable, "OUTCOME_UNKNOWN", 0), refuses(codes.NotFound, "MANAGER_GONE", 0))))
	_, err := sendOne(t, client)
	var failed *Error
	equal(t, errors.As(err, &failed) && errors.Is(err, ErrManagerGone) && !failed.Definite(), true)
	_, err = sendOne(t, client)
	equal(t, errors.As(err, &failed) && failed.Definite(), true)
}

func TestACallIsCancelledByItsContextAndByTheClient(t *testing.T) {
	t.Parallel()
	var a acts
	client := dial(t, serve(t, a.play(hangs)))
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-a.came; cancel() }()
	_, err := client.SendToUser(ctx, "key", "token", JSON(1))
	equal(t, errors.Is(err, context.Canceled) && !errors.Is(err, ErrClosed), true)
	go func() { <-a.came; _ = client.Close() }()
	_, err = client.SendToUser(context.Background(), "key", "token", JSON(1))
	equal(t, errors.Is(err, ErrClosed), true)
	_, err = client.SendToUser(context.Background(), "key", "token", JSON(1))
	equal(t, errors.Is(err, ErrClosed), true)
	_, err = client.Sender().Send(context.Background(), "key", "token", JSON(1))
	equal(t, errors.Is(err, ErrClosed), true)
}

func TestTokensGoOnlyWhereTheyAreNeeded(t *testing.T) {
	t.Parallel()
	tokens := map[string]string{}
	note := func(ctx context.Context, call string) {
		tokens[call] = sent(ctx, contextTokenKey) + "|" + sent(ctx, serviceTokenKey)
	}
	s := serve(t, &scripted{
		sendToUser: func(ctx context.Context, r *apiv1.SendToUserRequest) (*apiv1.SendToUserResponse, error) {
			note(ctx, "send")
			return &apiv1.SendToUserResponse{}, nil
		},
		exchange: func(ctx context.Context) (*apiv1.ExchangeContextTokenResponse, error) {
			note(ctx, "exchange")
			return &apiv1.ExchangeContextTokenResponse{ContextToken: "new"}, nil
		},
		sendBatch: func(ctx context.Context, _ *apiv1.SendBatchRequest) (*apiv1.SendBatchResponse, error) {
			note(ctx, "batch")
			return &apiv1.SendBatchResponse{}, nil
		},
	})
	client := dial(t, s, WithServiceToken("service"))
	must[Receipt](t)(client.SendToUser(within(t), "key", "ctx", JSON(1)))
	grant := must[ContextGrant](t)(client.ExchangeContextToken(within(t), "user", "c-1", []string{"send"}))
	must[[]BatchResult](t)(client.SendBatch(within(t), nil))
	equal(t, tokens, map[string]string{"send": "ctx|", "exchange": "|service", "batch": "|"})
	for _, printed := range []string{grant.Token.String(), grant.Token.GoString(), client.String(), client.GoString()} {
		equal(t, strings.Contains(printed, "new") || strings.Contains(printed, "|service"), false)
	}
}

func TestATokenThatGRPCCannotCarryIsRefusedAndNotQuoted(t *testing.T) {
	t.Parallel()
	var a acts
	client := dial(t, serve(t, a.play(takes)))
	for _, token := range []string{"secret\nx", "sécret", " secret", "secret ", "secret\x7f", strings.Repeat("s", 4_097)} {
		_, err := client.SendToUser(within(t), "key", token, JSON(1))
		equal(t, errors.Is(err, ErrTokenInvalid) && errors.Is(err, ErrToken), true)
		equal(t, strings.Contains(err.Error(), "cret"), false)
	}
	requests, _ := a.seen()
	equal(t, len(requests), 0)
	bad := dial(t, serve(t, a.play(takes)), WithServiceToken("secret\n"))
	_, err := bad.ExchangeContextToken(within(t), "user", "c-1", nil)
	equal(t, errors.Is(err, ErrTokenInvalid), true)
}

func TestAnItemThatCannotBeSentCostsTheOthersNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, &scripted{sendBatch: func(
		_ context.Context, r *apiv1.SendBatchRequest,
	) (*apiv1.SendBatchResponse, error) {
		equal(t, len(r.GetItems()), 2)
		return &apiv1.SendBatchResponse{Results: []*apiv1.SendBatchResult{
			{Result: &apiv1.SendBatchResult_Receipt{Receipt: accepted(r.GetItems()[0].GetMessage(), 7)}},
			{Result: &apiv1.SendBatchResult_Error{Error: refused(codes.PermissionDenied, "SCOPE_MISSING", 0)}},
		}}, nil
	}})
	results := must[[]BatchResult](t)(dial(t, s).SendBatch(within(t), []BatchItem{
		{IsolationKey: "k", ContextToken: "t", Message: JSON(1)},
		{IsolationKey: "k", ContextToken: "t", Message: JSON(math.NaN())},
		{IsolationKey: "k", ContextToken: "t\n", Message: JSON(1)},
		{IsolationKey: "k", ContextToken: "t", Message: JSON(2)},
	}))
	equal(t, results[0].Receipt.Sequence, uint64(7))
	for i, want := range []error{nil, ErrBadRequest, ErrTokenInvalid, ErrScopeMissing} {
		equal(t, errors.Is(results[i].Err, want), true)
	}
}

func TestACriticalEventHasAnIDAndItsJSON(t *testing.T) {
	t.Parallel()
	var came *apiv1.EmitCriticalEventRequest
	s := serve(t, &scripted{emit: func(
		_ context.Context, r *apiv1.EmitCriticalEventRequest,
	) (*apiv1.EmitCriticalEventResponse, error) {
		came = r
		return &apiv1.EmitCriticalEventResponse{Receipt: &apiv1.Receipt{MessageId: r.GetMessageId()}}, nil
	}})
	client := dial(t, s)
	receipt := must[Receipt](t)(client.EmitCriticalEvent(within(t), "k", "t", "paid", map[string]string{"of": "<a&b>"}))
	equal(t, receipt.MessageID, came.GetMessageId())
	equal(t, string(came.GetData()), `{"of":"<a&b>"}`)
	must[Receipt](t)(client.EmitCriticalEvent(within(t), "k", "t", "paid", 1, MessageID("mine")))
	equal(t, came.GetMessageId(), "mine")
}

// carrier has the shape of OpenTelemetry's propagation.TextMapCarrier.
type carrier interface {
	Get(key string) string
	Set(key, value string)
	Keys() []string
}

type propagator struct{}

type traceKey struct{}

func (propagator) Inject(ctx context.Context, into carrier) {
	if trace, ok := ctx.Value(traceKey{}).(string); ok {
		into.Set("traceparent", trace)
	}
}

func TestTheTraceContextGoesWithCallsAndStreams(t *testing.T) {
	t.Parallel()
	traces := make(chan string, 3)
	d := &deliverer{answer: takesAll}
	s := serve(t, &scripted{
		sendToUser: func(ctx context.Context, r *apiv1.SendToUserRequest) (*apiv1.SendToUserResponse, error) {
			traces <- sent(ctx, "traceparent")
			return &apiv1.SendToUserResponse{}, nil
		},
		deliver: func(stream apiv1.DeliveryService_DeliverServer) error {
			traces <- sent(stream.Context(), "traceparent")
			return d.serve(stream)
		},
		attach: func(stream apiv1.AgentService_AttachServer) error {
			traces <- sent(stream.Context(), "traceparent")
			return failure(codes.PermissionDenied, "SERVICE_DENIED", 0)
		},
	})
	client := dial(t, s, WithPropagator(propagator{}))
	ctx := context.WithValue(within(t), traceKey{}, "00-a-b-01")
	must[Receipt](t)(client.SendToUser(ctx, "k", "t", JSON(1)))
	pending := must[*Pending](t)(client.Sender().Send(ctx, "k", "t", JSON(1)))
	must[Receipt](t)(pending.Wait(ctx))
	equal(t, errors.Is(NewAgent("a", WithClient(client)).Run(ctx), ErrServiceDenied), true)
	for range 3 {
		equal(t, soon(t, traces), "00-a-b-01")
	}
}

func TestWaitUntilReadyFindsASidecarThatComesLater(t *testing.T) {
	t.Parallel()
	path := "unix:" + filepath.Join(t.TempDir(), "s")
	client := dial(t, &scripted{target: path})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	err := client.WaitUntilReady(ctx)
	equal(t, errors.Is(err, ErrTransport) && strings.Contains(err.Error(), "not ready"), true)
	ready := make(chan error)
	go func() { ready <- client.WaitUntilReady(within(t)) }()
	listener := must[net.Listener](t)(net.Listen("unix", strings.TrimPrefix(path, "unix:")))
	server, states := grpc.NewServer(), health.NewServer()
	states.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(server, states)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	states.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	equal(t, soon(t, ready), nil)
}

func TestASidecarThatIsBackIsFoundWithinTheTriesOfACall(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	var a acts
	s := a.play(takes)
	s.target = "unix:" + path
	client := dial(t, s, WithMaxAttempts(2)) // by the first try again, whatever pause chance gives it
	for range 5 {
		_, err := sendOne(t, client)
		equal(t, errors.Is(err, ErrTransport) && !errors.Is(err, context.DeadlineExceeded), true)
	}
	serveOn(t, s, must[net.Listener](t)(net.Listen("unix", path)))
	must[Receipt](t)(sendOne(t, client))
}

func TestTLSTrustsTheGivenAuthorityAlone(t *testing.T) {
	t.Parallel()
	ca, cert, key := selfSigned(t)
	pair := must[tls.Certificate](t)(tls.LoadX509KeyPair(cert, key))
	var a acts
	s := serve(t, a.play(takes), grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}})))
	config := must[*tls.Config](t)(TLSFromFiles(ca, cert, key))
	equal(t, len(config.Certificates), 1)
	must[Receipt](t)(sendOne(t, dial(t, s, WithTLS(config))))
	_, err := sendOne(t, dial(t, s, WithTLS(&tls.Config{})), Timeout(time.Second))
	equal(t, errors.Is(err, ErrTransport), true)
	empty := filepath.Join(t.TempDir(), "empty")
	equal(t, os.WriteFile(empty, nil, 0o600), nil)
	for _, file := range []string{empty, empty + "x"} {
		_, err = TLSFromFiles(file, "", "")
		equal(t, err != nil, true)
	}
}

func TestSettingsComeFromTheOptionsThenTheEnvironment(t *testing.T) {
	t.Setenv(endpointVariable, "unix:/run/s.sock")
	t.Setenv(serviceTokenVariable, "from-environment")
	made, err := settingsFrom(nil)
	equal(t, err, nil)
	equal(t, made.endpoint+made.serviceToken, "unix:/run/s.sockfrom-environment")
	made, err = settingsFrom([]Option{WithEndpoint("h:1"), WithServiceToken("mine")})
	equal(t, err, nil)
	equal(t, made.endpoint+made.serviceToken, "h:1mine")
	t.Setenv(endpointVariable, "")
	made, _ = settingsFrom(nil)
	equal(t, made.endpoint, "127.0.0.1:50051")
	for _, bad := range []Option{WithEndpoint("h"), WithEndpoint("h:x"), WithDefaultTimeout(0), WithMaxAttempts(0)} {
		_, err := NewClient(bad)
		equal(t, err != nil, true)
	}
}
