package sidecar

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

const (
	// reconnectBase is the least time between two tries to connect.
	reconnectBase = 100 * time.Millisecond
	// reconnectWait is how long a call waits for a lost connection before it tries again: gRPC's first back-off, which may
	// be a fifth longer, and time to connect.
	reconnectWait = 300 * time.Millisecond
)

// Client sends to users through a sidecar. Make one and keep it; it connects when it is first used.
//
// The deadline of every call is its context's; without one, the client's timeout, or what the option [Timeout] says. It
// holds over all tries: UNAVAILABLE is tried again where that is safe, which is where a message_id makes it one message.
// Never tried again are what is over a limit (RESOURCE_EXHAUSTED: yours to decide), a deadline that passed, and
// CloseManager, RefreshContextToken, RevokeContextToken and ExchangeContextToken, of which a second one is another.
//
// Errors are [*Error]. A call that was cancelled may have been taken.
type Client struct {
	settings settings
	conn     *grpc.ClientConn
	delivery apiv1.DeliveryServiceClient
	contexts apiv1.ContextServiceClient
	agents   apiv1.AgentServiceClient
	health   grpc_health_v1.HealthClient

	reconnected atomic.Int64 // when a lost connection was last tried again by a call, in Unix nanoseconds

	closed    chan struct{}
	closeOnce sync.Once
	mu        sync.Mutex
	senders   map[*Sender]struct{}
}

// SidecarClient is Client, by the name that it has in every language.
type SidecarClient = Client

// NewClient makes a client; it does not wait for the sidecar, which need not have been started yet.
func NewClient(options ...Option) (*Client, error) {
	made, err := settingsFrom(options)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(target(made.endpoint), dialOptions(&made)...)
	if err != nil {
		return nil, fmt.Errorf("sidecar: %w", err)
	}
	return &Client{
		settings: made,
		conn:     conn,
		delivery: apiv1.NewDeliveryServiceClient(conn),
		contexts: apiv1.NewContextServiceClient(conn),
		agents:   apiv1.NewAgentServiceClient(conn),
		health:   grpc_health_v1.NewHealthClient(conn),
		closed:   make(chan struct{}),
		senders:  make(map[*Sender]struct{}),
	}, nil
}

// target has the name resolved by every dial of its own, so that none is kept for longer than it holds.
func target(endpoint string) string {
	if strings.HasPrefix(endpoint, "unix:") {
		return endpoint
	}
	return "passthrough:///" + endpoint
}

func dialOptions(s *settings) []grpc.DialOption {
	transport := insecure.NewCredentials()
	if s.tls != nil {
		transport = credentials.NewTLS(s.tls)
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent("ws-sidecar-go/" + Version),
		// A connection that a network or a stopped process holds open is found out within 20 s. The sidecar takes pings
		// every 10 s, with or without calls.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 10 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true,
		}),
		// The sidecar is next door: it is back as soon as it has started.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: reconnectBase, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second,
			},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithIdleTimeout(0),
		// Retries that a service config could ask for know nothing of RetryInfo.
		grpc.WithDisableServiceConfig(),
		// Tokens do not go through somebody's http_proxy to a sidecar on the same host.
		grpc.WithNoProxy(),
	}
}

// Close closes the senders side by side, within 5 seconds, then the connection; calls under way fail. Idempotent; returns
// nil.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		c.mu.Lock()
		close(c.closed)
		senders := c.senders
		c.senders = nil
		c.mu.Unlock()
		var closing sync.WaitGroup
		for sender := range senders {
			closing.Go(func() { _ = sender.Close() })
		}
		closing.Wait()
		_ = c.conn.Close()
	})
	return nil
}

// String tells where the sidecar is, and no token.
func (c *Client) String() string { return fmt.Sprintf("sidecar.Client(%s)", c.settings.endpoint) }

// GoString is String: the settings hold a secret.
func (c *Client) GoString() string { return c.String() }

// LogValue is String: the settings hold a secret.
func (c *Client) LogValue() slog.Value { return slog.StringValue(c.String()) }

// WaitUntilReady returns when the sidecar serves; it need not have been started yet. Fails with ErrTransport when the
// context's deadline, else the client's timeout, has passed.
func (c *Client) WaitUntilReady(ctx context.Context) error {
	ctx, cancel := c.bounded(ctx, &callSettings{})
	defer cancel()
	pause := newBackOff(retryBase, retryCap)
	for {
		err := c.watchHealth(ctx)
		if err == nil {
			return nil
		}
		if !sleep(ctx, c.closed, pause.next(0)) {
			err.Message = "the sidecar is not ready"
			return err
		}
	}
}

// watchHealth returns nil once the sidecar as a whole serves.
func (c *Client) watchHealth(ctx context.Context) *Error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, err := c.health.Watch(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return errorFromCall(ctx, err)
	}
	for {
		answer, err := watch.Recv()
		if err != nil {
			return errorFromCall(ctx, err)
		}
		if answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING {
			return nil
		}
	}
}

// bounded is ctx with the deadline of one call.
func (c *Client) bounded(ctx context.Context, s *callSettings) (context.Context, context.CancelFunc) {
	deadline, ok := c.deadline(ctx, s)
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline)
}

// deadline is when a call is to be given up: false where the context says it.
func (c *Client) deadline(ctx context.Context, s *callSettings) (time.Time, bool) {
	if s.timeout > 0 {
		return time.Now().Add(s.timeout + s.hold), true
	}
	if given, ok := ctx.Deadline(); ok {
		return given, false
	}
	return time.Now().Add(c.settings.timeout + s.hold), true
}

// withToken is ctx with a token, where there is one, and the trace context in its outgoing metadata.
func (c *Client) withToken(ctx context.Context, name, token string) (context.Context, *Error) {
	if err := checkToken(token); err != nil {
		return nil, err
	}
	sent, _ := metadata.FromOutgoingContext(ctx)
	sent = sent.Copy()
	if token != "" {
		sent.Set(name, token)
	}
	if c.settings.inject != nil {
		for key, value := range c.settings.inject(ctx) {
			sent.Set(key, value)
		}
	}
	return metadata.NewOutgoingContext(ctx, sent), nil
}

func (c *Client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

func closedError(what string) *Error {
	return &Error{Code: codes.Canceled, Message: what + " is closed", cause: ErrClosed}
}
