package sidecar

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	endpointVariable     = "SIDECAR_GRPC_ENDPOINT"
	serviceTokenVariable = "SIDECAR_SERVICE_TOKEN"
	defaultEndpoint      = "127.0.0.1:50051"
	defaultTimeout       = 5 * time.Second
	defaultMaxAttempts   = 4
)

// Option says how a client reaches the sidecar.
type Option func(*settings)

type settings struct {
	endpoint     string
	serviceToken string
	tls          *tls.Config
	timeout      time.Duration
	maxAttempts  int
	logger       *slog.Logger
	inject       func(context.Context) map[string]string
}

// WithEndpoint is where the sidecar listens: host:port or unix:/path. Default: $SIDECAR_GRPC_ENDPOINT, else
// 127.0.0.1:50051.
func WithEndpoint(endpoint string) Option {
	return func(s *settings) { s.endpoint = endpoint }
}

// WithServiceToken says which service this is. Default: $SIDECAR_SERVICE_TOKEN. It goes only with the calls that need it.
func WithServiceToken(token string) Option {
	return func(s *settings) { s.serviceToken = token }
}

// WithTLS speaks TLS, with a certificate in config for mTLS; see [TLSFromFiles]. Default: plain TCP, or a Unix socket.
func WithTLS(config *tls.Config) Option {
	return func(s *settings) { s.tls = config }
}

// WithDefaultTimeout is the deadline of calls whose context has none, over all their tries. Default: 5 seconds.
func WithDefaultTimeout(timeout time.Duration) Option {
	return func(s *settings) { s.timeout = timeout }
}

// WithMaxAttempts is how often a call is tried at most. Default: 4.
func WithMaxAttempts(attempts int) Option {
	return func(s *settings) { s.maxAttempts = attempts }
}

// WithLogger is where agents say what went wrong. Default: slog.Default(). No token or payload is logged.
func WithLogger(logger *slog.Logger) Option {
	return func(s *settings) { s.logger = logger }
}

// WithPropagator has every call and stream carry the trace context of its context.Context, such as `traceparent`:
//
//	sidecar.NewClient(sidecar.WithPropagator(otel.GetTextMapPropagator()))
//
// C is the propagator's own carrier type, propagation.TextMapCarrier of OpenTelemetry, which this module does not need.
func WithPropagator[C any](propagator interface {
	Inject(ctx context.Context, carrier C)
}) Option {
	return func(s *settings) {
		s.inject = func(ctx context.Context) map[string]string {
			fields := traceFields{}
			if carrier, ok := any(fields).(C); ok {
				propagator.Inject(ctx, carrier)
			}
			return fields
		}
	}
}

// traceFields is a carrier of OpenTelemetry's kind.
type traceFields map[string]string

func (f traceFields) Get(key string) string { return f[key] }

func (f traceFields) Set(key, value string) { f[key] = value }

func (f traceFields) Keys() []string {
	keys := make([]string, 0, len(f))
	for key := range f {
		keys = append(keys, key)
	}
	return keys
}

// TLSFromFiles trusts the certificates of caFile (PEM) and none else; with certFile and keyFile it presents them (mTLS),
// both may be empty.
func TLSFromFiles(caFile, certFile, keyFile string) (*tls.Config, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("sidecar: reading the CA: %w", err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("sidecar: the CA file holds no certificate")
	}
	if certFile != "" || keyFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("sidecar: reading the certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// settingsFrom is what was given, then what the environment says, then the defaults.
func settingsFrom(options []Option) (settings, error) {
	made := settings{
		endpoint:     os.Getenv(endpointVariable),
		serviceToken: os.Getenv(serviceTokenVariable),
		timeout:      defaultTimeout,
		maxAttempts:  defaultMaxAttempts,
	}
	for _, option := range options {
		option(&made)
	}
	if made.endpoint == "" {
		made.endpoint = defaultEndpoint
	}
	if made.logger == nil {
		made.logger = slog.Default()
	}
	return made, made.check()
}

func (s *settings) check() error {
	port := s.endpoint[strings.LastIndex(s.endpoint, ":")+1:]
	if _, err := strconv.ParseUint(port, 10, 16); err != nil && !strings.HasPrefix(s.endpoint, "unix:") {
		return errors.New("sidecar: endpoint is host:port or unix:/path")
	}
	if s.timeout <= 0 {
		return errors.New("sidecar: the timeout is more than 0")
	}
	if s.maxAttempts < 1 {
		return errors.New("sidecar: attempts are at least 1")
	}
	return nil
}

// CallOption says more of one call. Each method names those that it heeds.
type CallOption func(*callSettings)

type callSettings struct {
	timeout        time.Duration // 0: the context's, else the client's
	hold           time.Duration
	holds          bool
	expectedUserID string
	messageID      string
	closeCode      uint32
	closeReason    string
}

func callSettingsFrom(options []CallOption) callSettings {
	var made callSettings
	for _, option := range options {
		option(&made)
	}
	return made
}

// Timeout is this call's own deadline, over all its tries; the context's still holds where it is earlier.
func Timeout(timeout time.Duration) CallOption {
	return func(s *callSettings) { s.timeout = timeout }
}

// ExpectedUserID is the user that the caller means, from its own authentication of what it answers: a token of another
// user's is refused, ErrIsolationViolation. So a page cannot make Alice's request carry Mallory's token.
func ExpectedUserID(userID string) CallOption {
	return func(s *callSettings) { s.expectedUserID = userID }
}

// WaitForAck holds the answer until the client has acknowledged the message, or it is dropped, or that long (at most 60
// seconds); the receipt's state says how far it came. Where the client's timeout is the deadline, it is later by as much.
func WaitForAck(wait time.Duration) CallOption {
	return func(s *callSettings) { s.hold, s.holds = wait, true }
}

// MessageID is the idempotency key of EmitCriticalEvent. Default: made up. Of a message it is the field ID.
func MessageID(id string) CallOption {
	return func(s *callSettings) { s.messageID = id }
}

// CloseCode is what the client of CloseManager is told: 4900 to 4999 with a reason of the service's own. Default: 4505.
func CloseCode(code int, reason string) CallOption {
	return func(s *callSettings) { s.closeCode, s.closeReason = uint32(code), reason }
}
