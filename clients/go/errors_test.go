package sidecar

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	apiv1 "ws-sidecar.dev/client/api/v1"
)

func TestEveryReasonOfTheCatalogueHasItsError(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "reasons.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	ast.Inspect(file, func(node ast.Node) bool {
		if literal, ok := node.(*ast.BasicLit); ok && literal.Kind == token.STRING {
			name, _ := strconv.Unquote(literal.Value)
			names[name] = true
		}
		return true
	})
	for number, name := range apiv1.ErrorReason_name {
		if number != 0 && !names[strings.TrimPrefix(name, "ERROR_REASON_")] {
			t.Errorf("%s has no error", name)
		}
	}
}

func TestWhatARefusalSays(t *testing.T) {
	failed := errorFromStatus(refused(codes.Internal, "INTERNAL", 0))
	equal(t, failed.Error(), "INTERNAL: a fixed text (incident i-1)")
	equal(t, failed.Definite(), false)
	equal(t, errors.Is(failed, ErrInternal) && !errors.Is(failed, ErrTransport), true)

	unknown := errorFromStatus(refused(codes.FailedPrecondition, "OF_NEXT_YEAR", 2*time.Second))
	equal(t, unknown.Definite() && errors.Is(unknown, Reason("OF_NEXT_YEAR")), true)
	equal(t, unknown.RetryAfter, 2*time.Second)

	bad := badRequest("message.ttl", "more than 0")
	equal(t, bad.Error(), "BAD_REQUEST: the request is not valid; message.ttl: more than 0")
	equal(t, bad.Violations, []Violation{{"message.ttl", "more than 0"}})
}

func TestWhoSaysNoReasonIsTheTransport(t *testing.T) {
	foreign := refused(codes.Unavailable, "X", 0)
	foreign.Details[0].Value = nil // an ErrorInfo of no domain
	failed := errorFromStatus(foreign)
	equal(t, errors.Is(failed, ErrTransport) && !failed.Definite() && failed.Reason == "", true)
	equal(t, failed.Error(), "UNAVAILABLE: a fixed text")
	foreign.Details[0].Value = []byte{0xff}
	equal(t, errors.Is(errorFromStatus(foreign), ErrTransport), true)
	equal(t, (&Error{Code: codes.Unimplemented}).Definite(), true)
	equal(t, errors.Is(errorFromStatus(nil), ErrTransport), true)
}

func TestCodesHaveTheContractsNames(t *testing.T) {
	for code, want := range map[codes.Code]string{
		codes.OK: "OK", codes.Canceled: "CANCELLED", codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
		codes.NotFound: "NOT_FOUND", codes.DataLoss: "DATA_LOSS",
	} {
		equal(t, codeName(code), want)
	}
}

func TestAContextThatEndedIsTheCause(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	equal(t, errors.Is(errorFromContext(ctx), context.Canceled), true)
	ctx, cancel = context.WithTimeout(context.Background(), 0)
	defer cancel()
	equal(t, errors.Is(errorFromContext(ctx), context.DeadlineExceeded), true)
}

func TestTheBackOffDoublesAndIsBounded(t *testing.T) {
	pause := &backOff{base: 50 * time.Millisecond, cap: 2 * time.Second, uniform: func() float64 { return 1 }}
	var waits []time.Duration
	for range 8 {
		waits = append(waits, pause.next(0)/time.Millisecond)
	}
	equal(t, waits, []time.Duration{50, 100, 200, 400, 800, 1600, 2000, 2000})
	pause.tries = 1_000_000
	equal(t, pause.next(time.Second), 3*time.Second)
	pause.reset()
	equal(t, pause.next(0), 50*time.Millisecond)
}

func TestTheLifeOfAToken(t *testing.T) {
	life, ok := lifeOf(tokenFor(900))
	equal(t, ok && life == 900*time.Second, true)
	for _, opaque := range []string{"", "a.b", "a.%.c", "a.e30.c", "a.bm8.c"} {
		_, ok := lifeOf(opaque)
		equal(t, ok, false)
	}
}
