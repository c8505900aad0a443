package sidecar

import (
	"errors"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
)

// Reason is a name of the catalogue of reasons (error_reason.proto), to be compared by errors.Is: any error that the
// sidecar refused for that reason matches. One that came after this version is written as Reason("ITS_NAME").
type Reason string

// Error is the name.
func (r Reason) Error() string { return string(r) }

// The catalogue.
const (
	ErrTokenMissing          Reason = "TOKEN_MISSING"          // the call needs a token and carries none
	ErrTokenInvalid          Reason = "TOKEN_INVALID"          // the token is malformed, or not for this
	ErrTokenExpired          Reason = "TOKEN_EXPIRED"          // refresh in time, or exchange for a new one
	ErrTokenRevoked          Reason = "TOKEN_REVOKED"          // the token or its family was revoked
	ErrIsolationViolation    Reason = "ISOLATION_VIOLATION"    // the token opens another key, or is another user's
	ErrScopeMissing          Reason = "SCOPE_MISSING"          // the token lacks the scope that the call needs
	ErrServiceDenied         Reason = "SERVICE_DENIED"         // this service may not make this call
	ErrManagerGone           Reason = "MANAGER_GONE"           // the connection context has ended
	ErrOutboxFull            Reason = "OUTBOX_FULL"            // the client is away or slow
	ErrUserLimit             Reason = "USER_LIMIT"             // a limit of the token's own user
	ErrRateLimited           Reason = "RATE_LIMITED"           // too many calls, messages or attempts for now
	ErrMessageIDReused       Reason = "MESSAGE_ID_REUSED"      // the id was used for other content
	ErrSubscriptionTaken     Reason = "SUBSCRIPTION_TAKEN"     // another service holds this subscription
	ErrBadRequest            Reason = "BAD_REQUEST"            // a field is missing or over its limit; see Violations
	ErrDurabilityUnavailable Reason = "DURABILITY_UNAVAILABLE" // the store does not give the durability asked for
	ErrStreamCancelled       Reason = "STREAM_CANCELLED"       // the client wants no more of this response stream
	ErrStreamEnded           Reason = "STREAM_ENDED"           // the response stream has had its last chunk
	ErrStreamOutOfOrder      Reason = "STREAM_OUT_OF_ORDER"    // the chunk's index is ahead of the next
	ErrLaneNotOpen           Reason = "LANE_NOT_OPEN"          // the item names a lane that is not open
	ErrDraining              Reason = "DRAINING"               // the sidecar is about to stop
	ErrClusterUnavailable    Reason = "CLUSTER_UNAVAILABLE"    // the sidecar cannot reach its cluster
	ErrStorageUnavailable    Reason = "STORAGE_UNAVAILABLE"    // the sidecar cannot reach its store
	ErrAuditUnavailable      Reason = "AUDIT_UNAVAILABLE"      // the audit trail cannot be written
	ErrUnsupported           Reason = "UNSUPPORTED"            // in the contract, not served by this sidecar
	ErrOutcomeUnknown        Reason = "OUTCOME_UNKNOWN"        // the store did not say whether it took the message
	ErrInternal              Reason = "INTERNAL"               // unforeseen; see IncidentID
	ErrNoAgent               Reason = "NO_AGENT"               // to a user's client only: no service takes its message
	ErrAgentBusy             Reason = "AGENT_BUSY"             // to a user's client only: its service has no room now
)

var (
	// ErrTransport matches what has no answer of the sidecar's: a deadline that passed, a connection that broke, a call
	// that was cancelled.
	ErrTransport = errors.New("the transport failed")
	// ErrToken matches every refusal of a token: get another one.
	ErrToken = errors.New("the token was refused")
	// ErrClosed matches calls of a client, sender or agent that is closed.
	ErrClosed = errors.New("it is closed")
)

var humps = regexp.MustCompile(`([a-z])([A-Z])`)

// codeName is the contract's name of a status, such as PERMISSION_DENIED.
func codeName(code codes.Code) string {
	if code == codes.Canceled {
		return "CANCELLED" // Go's name is the only one with one l
	}
	return strings.ToUpper(humps.ReplaceAllString(code.String(), "${1}_${2}"))
}
