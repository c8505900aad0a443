package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	sidecar "ws-sidecar.dev/client"
)

const (
	pause            = 40 * time.Millisecond
	answerTimeout    = 2 * time.Minute
	maxBodyBytes     = 16_384
	maxQuestionBytes = 8_000
	maxSessions      = 10_000
	maxAnswers       = 1_000 // under way at a time
)

var userID = regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,64}$`)

// service is an HTTP service with a sign-in of its own.
type service struct {
	sidecar *sidecar.Client
	answers sync.WaitGroup
	room    chan struct{} // holds one for each answer under way

	mu       sync.Mutex
	sessions map[string]string // the user by the session cookie
}

func newService(client *sidecar.Client) *service {
	return &service{sidecar: client, room: make(chan struct{}, maxAnswers), sessions: make(map[string]string)}
}

func (s *service) routes() http.Handler {
	routes := http.NewServeMux()
	routes.HandleFunc("POST /sign-in", s.signIn)
	routes.HandleFunc("POST /ask", s.ask)
	return routes
}

// wait lets the answers under way end, at most that long.
func (s *service) wait(most time.Duration) {
	over := make(chan struct{})
	go func() { defer close(over); s.answers.Wait() }()
	select {
	case <-over:
	case <-time.After(most):
	}
}

// signIn stands for the sign-in that your service has: whoever one says one is.
func (s *service) signIn(w http.ResponseWriter, r *http.Request) {
	var who struct {
		UserID string `json:"user_id"`
	}
	if !decode(w, r, &who) || !userID.MatchString(who.UserID) {
		http.Error(w, "no such user", http.StatusBadRequest)
		return
	}
	session := rand.Text()
	s.mu.Lock()
	full := len(s.sessions) >= maxSessions
	if !full {
		s.sessions[session] = who.UserID
	}
	s.mu.Unlock()
	if full {
		http.Error(w, "too many sessions", http.StatusServiceUnavailable)
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: "session", Value: session, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	w.WriteHeader(http.StatusNoContent)
}

// signedIn is who asks, by the service's own authentication and by nothing else.
func (s *service) signedIn(r *http.Request) (string, bool) {
	cookie, err := r.Cookie("session")
	if err != nil {
		return "", false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	user, ok := s.sessions[cookie.Value]
	return user, ok
}

// ask answers to the context that the page's token names, which must be the signed-in user's own. The first word is sent
// before the request is answered, so that what the sidecar refuses is refused here.
func (s *service) ask(w http.ResponseWriter, r *http.Request) {
	user, ok := s.signedIn(r)
	if !ok {
		http.Error(w, "sign in first", http.StatusUnauthorized)
		return
	}
	var asked struct {
		Question string `json:"question"`
	}
	if !decode(w, r, &asked) || len(asked.Question) > maxQuestionBytes {
		http.Error(w, "not a question", http.StatusBadRequest)
		return
	}
	select {
	case s.room <- struct{}{}:
	default:
		http.Error(w, "too many questions", http.StatusServiceUnavailable)
		return
	}
	streamID, err := s.begin(r, user, asked.Question)
	if err != nil {
		<-s.room
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(map[string]string{"stream_id": streamID})
}

// begin sends the first word and has the others follow.
func (s *service) begin(r *http.Request, user, question string) (streamID string, err error) {
	token := r.Header.Get("X-Context-Token")
	key := r.Header.Get("X-Isolation-Key")
	if key == "" {
		facts, err := s.sidecar.GetContext(r.Context(), token)
		if err != nil {
			return "", err
		}
		key = facts.IsolationKey
	}
	answer := &answer{sidecar: s.sidecar, key: key, token: token, user: user, streamID: rand.Text()}
	words := strings.SplitAfter("You asked: "+question, " ")
	if err := answer.send(r.Context(), words[0], sidecar.StreamOpen); err != nil {
		return "", err
	}
	// The answer outlives its request.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), answerTimeout)
	s.answers.Go(func() {
		defer func() { cancel(); <-s.room }()
		answer.rest(ctx, words[1:])
	})
	return answer.streamID, nil
}

// answer is one response stream, to one context.
type answer struct {
	sidecar          *sidecar.Client
	key, token, user string
	streamID         string
	index            uint64
}

// send sends the next chunk. expected_user_id is whom the service has authenticated: a page cannot make Alice's request
// carry Mallory's token.
func (a *answer) send(ctx context.Context, word string, state sidecar.StreamState) error {
	chunk := sidecar.Text(word)
	chunk.EventType = "answer"
	chunk.Stream = &sidecar.StreamPlace{StreamID: a.streamID, Index: a.index, State: state}
	_, err := a.sidecar.SendToUser(
		ctx, a.key, a.token, chunk, sidecar.ExpectedUserID(a.user), sidecar.Timeout(10*time.Second))
	if err == nil {
		a.index++
	}
	return err
}

// rest sends the other words; it stops when the user has heard enough, or is gone.
func (a *answer) rest(ctx context.Context, words []string) {
	for _, word := range words {
		time.Sleep(pause) // a model would be thinking
		if err := a.send(ctx, word, sidecar.StreamOpen); err != nil {
			tell(err)
			return
		}
	}
	if err := a.send(ctx, "", sidecar.StreamEnd); err != nil {
		tell(err)
	}
}

func tell(err error) {
	if errors.Is(err, sidecar.ErrStreamCancelled) || errors.Is(err, sidecar.ErrManagerGone) {
		return // nobody listens any more
	}
	log.Printf("an answer could not be sent: %v", err)
}

// refuse says the sidecar's refusal as HTTP does (RFC 9110 §15.5, §15.6); never its text.
func refuse(w http.ResponseWriter, err error) {
	var refused *sidecar.Error
	if !errors.As(err, &refused) {
		refused = &sidecar.Error{}
	}
	status := http.StatusServiceUnavailable
	switch {
	case errors.Is(err, sidecar.ErrToken):
		status = http.StatusUnauthorized
	case errors.Is(err, sidecar.ErrIsolationViolation):
		status = http.StatusForbidden
	case errors.Is(err, sidecar.ErrManagerGone):
		status = http.StatusGone
	case errors.Is(err, sidecar.ErrOutboxFull):
		status = http.StatusTooManyRequests
	}
	if refused.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(refused.RetryAfter.Seconds()))))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"reason": string(refused.Reason)})
}

// decode reads a small JSON body.
func decode(w http.ResponseWriter, r *http.Request, value any) bool {
	return json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBodyBytes)).Decode(value) == nil
}
