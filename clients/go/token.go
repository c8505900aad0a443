package sidecar

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

const maxTokenCharacters = 4_096

// checkToken refuses, as the sidecar would, what gRPC cannot carry, without ever naming it: a service hands on what a
// request brought it, and a line break in that must not become an error that quotes it.
func checkToken(token string) *Error {
	good := len(token) <= maxTokenCharacters && !strings.HasPrefix(token, " ") && !strings.HasSuffix(token, " ")
	for i := 0; good && i < len(token); i++ {
		good = token[i]-' ' <= '~'-' ' // of a byte: below the space it wraps around
	}
	if !good {
		return refusal(codes.Unauthenticated, ErrTokenInvalid, "the token is not valid")
	}
	return nil
}

// lifeOf is how long the token lives in all, by its own claims (RFC 7519 §4.1); false where it does not say.
//
// It is from one clock, the sidecar's: how far that is from this one does not matter.
func lifeOf(token string) (time.Duration, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return 0, false
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return 0, false
	}
	var claims struct{ Exp, Iat *float64 }
	if json.Unmarshal(body, &claims) != nil || claims.Exp == nil || claims.Iat == nil {
		return 0, false
	}
	return time.Duration((*claims.Exp - *claims.Iat) * float64(time.Second)), true
}
