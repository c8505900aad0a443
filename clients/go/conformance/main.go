// The conformance runner of the Go client: one command a line on standard input, one call of the client, one answer a line
// on standard output. See clients/conformance/README.md.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"sync"

	sidecar "ws-sidecar.dev/client"
)

// command is one line of the driver's.
type command struct {
	ID   int64           `json:"id"`
	Do   string          `json:"do"`
	With json.RawMessage `json:"with"`
}

// work is the rest of a command that was begun: what may wait.
type work func() (any, error)

// answers are written whole, in any order.
type answers struct {
	mu  sync.Mutex
	out *bufio.Writer
}

func main() {
	r := &runner{
		clients: newNamed[*sidecar.Client](), senders: newNamed[*sidecar.Sender](), agents: newNamed[*agent](),
	}
	defer r.end()
	out := &answers{out: bufio.NewWriter(os.Stdout)}
	lines := bufio.NewReader(os.Stdin)
	var open sync.WaitGroup
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			r.serve(line, out, &open)
		}
		if err != nil {
			return // standard input has ended, and with it all that still waits
		}
	}
}

// serve begins one command; what it waits for holds up no other.
func (r *runner) serve(line []byte, out *answers, open *sync.WaitGroup) {
	var said command
	if err := json.Unmarshal(line, &said); err != nil {
		out.write(said.ID, nil, err)
		return
	}
	rest, err := r.begin(said.Do, said.With)
	if err != nil || rest == nil {
		out.write(said.ID, struct{}{}, err)
		return
	}
	open.Go(func() {
		ok, err := rest()
		out.write(said.ID, ok, err)
	})
}

func (a *answers) write(id int64, ok any, err error) {
	answer := map[string]any{"id": id}
	if err != nil {
		answer["error"] = errorOf(err)
	} else {
		answer["ok"] = ok
	}
	line, err := json.Marshal(answer)
	if err != nil {
		line, _ = json.Marshal(map[string]any{"id": id, "error": errorOf(err)})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, _ = a.out.Write(append(line, '\n'))
	_ = a.out.Flush()
}

var errUnknown = errors.New("unknown command")

func errorOf(err error) map[string]any {
	var failed *sidecar.Error
	switch {
	case errors.Is(err, errUnknown):
		return map[string]any{"reason": "UNKNOWN_COMMAND"}
	case !errors.As(err, &failed):
		return map[string]any{"reason": "CRASH", "message": err.Error()}
	}
	made := map[string]any{"code": failed.CodeName(), "reason": failed.Reason, "definite": failed.Definite()}
	if failed.RetryAfter > 0 {
		made["retry_after_s"] = failed.RetryAfter.Seconds()
	}
	return made
}
