package sidecar

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const domain = "sidecar"

// Error says that a call was refused or failed. It never holds a token or anything else of the request.
type Error struct {
	// Code is the gRPC status.
	Code codes.Code
	// Reason is the catalogue's name, empty where the transport failed. Expect reasons that this version does not know.
	Reason Reason
	// Message is the sidecar's fixed text.
	Message string
	// RetryAfter is how long the sidecar asks to wait before another try; 0 where it says nothing.
	RetryAfter time.Duration
	// IncidentID is what the sidecar's log calls an INTERNAL failure.
	IncidentID string
	// Violations are the fields at fault of a BAD_REQUEST.
	Violations []Violation

	unansweredBefore bool // the same was tried before, and that try had no answer
	cause            error
}

// Violation is one field at fault and the rule that it breaks.
type Violation struct {
	Field       string
	Description string
}

// Definite reports whether nothing was changed. If not, it may have been: repeat with the same message id, or not at all.
//
// A refusal speaks of its own try: behind one that had no answer it is not definite either.
func (e *Error) Definite() bool {
	switch {
	case e.unansweredBefore, e.Reason == ErrOutcomeUnknown, e.Code == codes.Internal:
		return false
	case e.Reason == "":
		return e.Code == codes.Unimplemented // a method that the sidecar does not have
	}
	return true
}

// Error is the reason, or the status where there is none, and the text.
func (e *Error) Error() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %s", e.name(), e.Message)
	for _, each := range e.Violations {
		fmt.Fprintf(&text, "; %s: %s", each.Field, each.Description)
	}
	if e.IncidentID != "" {
		fmt.Fprintf(&text, " (incident %s)", e.IncidentID)
	}
	return text.String()
}

// Is makes errors.Is(err, ErrManagerGone) true for what has that reason; see also [ErrTransport] and [ErrToken].
func (e *Error) Is(target error) bool {
	switch target {
	case ErrTransport:
		return e.Reason == ""
	case ErrToken:
		return e.Reason != "" && e.Code == codes.Unauthenticated
	}
	reason, ok := target.(Reason)
	return ok && reason != "" && reason == e.Reason
}

// Unwrap is what ended the call on this side, such as context.Canceled; else nil.
func (e *Error) Unwrap() error { return e.cause }

// CodeName is the contract's name of the code, such as PERMISSION_DENIED; Go's own has other letters.
func (e *Error) CodeName() string { return codeName(e.Code) }

func (e *Error) name() string {
	if e.Reason != "" {
		return string(e.Reason)
	}
	return e.CodeName()
}

// again is the error as the answer to one more caller, who may have tried before.
func (e *Error) again(unansweredBefore bool) *Error {
	made := *e
	made.unansweredBefore = unansweredBefore
	return &made
}

// passes reports whether the same may be answered otherwise soon.
func (e *Error) passes() bool {
	return e.Code == codes.Unavailable && e.Reason != ErrNoAgent
}

// breaks reports whether e is but the end of a stream, so that a further one may go better.
func (e *Error) breaks() bool {
	if e.Reason != "" {
		return e.RetryAfter > 0 || e.passes()
	}
	switch e.Code {
	case codes.Unavailable, codes.Canceled, codes.Unknown, codes.Internal:
		return true
	}
	return false
}

// errorFromStatus is what a google.rpc.Status says: of a call, of an item of a batch or of a lane.
func errorFromStatus(said *spb.Status) *Error {
	made := &Error{Code: codes.Code(said.GetCode()), Message: said.GetMessage()}
	for _, packed := range said.GetDetails() {
		detail, err := packed.UnmarshalNew()
		if err != nil {
			continue // a kind that came later, or one that somebody on the way broke, says nothing
		}
		made.take(detail)
	}
	if made.Reason == "" {
		made.IncidentID, made.Violations = "", nil
	}
	if made.Code == codes.OK {
		made.Code = codes.Unknown // it stands where an error stands
	}
	return made
}

func (e *Error) take(detail any) {
	switch detail := detail.(type) {
	case *errdetails.ErrorInfo:
		if detail.GetDomain() == domain {
			e.Reason = Reason(detail.GetReason())
			e.IncidentID = detail.GetMetadata()["incident_id"]
		}
	case *errdetails.RetryInfo:
		e.RetryAfter = detail.GetRetryDelay().AsDuration()
	case *errdetails.BadRequest:
		for _, each := range detail.GetFieldViolations() {
			e.Violations = append(e.Violations, Violation{each.GetField(), each.GetDescription()})
		}
	}
}

// errorFromCall is what a failed call says. Texts of the transport are kept: none of them quotes metadata.
func errorFromCall(ctx context.Context, err error) *Error {
	made := errorFromStatus(status.Convert(err).Proto())
	if made.Reason == "" {
		made.cause = causeOf(ctx, made.Code)
	}
	return made
}

// causeOf is the context's own error where that is what ended a call.
func causeOf(ctx context.Context, code codes.Code) error {
	switch code {
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.Canceled:
		if ctx.Err() != nil {
			return context.Canceled
		}
	}
	return nil
}

// errorFromContext is what a context that has ended says.
func errorFromContext(ctx context.Context) *Error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return deadlineExceeded()
	}
	return &Error{Code: codes.Canceled, Message: "the caller gave up", cause: ctx.Err()}
}

func deadlineExceeded() *Error {
	return &Error{Code: codes.DeadlineExceeded, Message: "the deadline passed", cause: context.DeadlineExceeded}
}

// refusal is what the sidecar would have answered; said here because it need not be asked.
func refusal(code codes.Code, reason Reason, message string) *Error {
	return &Error{Code: code, Reason: reason, Message: message}
}

// badRequest is a refusal of one field that no request can hold.
func badRequest(field, description string) *Error {
	made := refusal(codes.InvalidArgument, ErrBadRequest, "the request is not valid")
	made.Violations = []Violation{{field, description}}
	return made
}
