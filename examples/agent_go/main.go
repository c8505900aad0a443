// An agent service: attached to the sidecar, it answers word by word, stops when told to, and tries what must fail. It
// runs until SIGTERM, SIGINT, or the end of whoever holds the other end of its standard input.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	sidecar "ws-sidecar.dev/client"
)

const (
	exitUnavailable = 69
	exitConfig      = 78

	attachTimeout = 15 * time.Second
	grace         = time.Second
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("demo agent: ")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go stopWithParent(stop)
	os.Exit(serve(ctx))
}

// serve serves until ctx ends; it returns the exit code.
func serve(ctx context.Context) int {
	client, err := sidecar.NewClient()
	if err != nil {
		log.Print(err)
		return exitConfig
	}
	defer func() { _ = client.Close() }()
	agent := newAgent(client)
	go tellAttached(ctx, agent)
	if err := agent.Run(ctx); err != nil {
		log.Printf("not attached: %v", err)
		return exitUnavailable
	}
	return 0
}

func tellAttached(ctx context.Context, agent *sidecar.Agent) {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	if agent.WaitAttached(ctx) == nil {
		fmt.Println("demo agent attached")
	}
}

// stopWithParent stops when a pipe as standard input closes: it is held by a parent, which has gone. A terminal means
// nothing.
func stopWithParent(stop func()) {
	about, err := os.Stdin.Stat()
	if err == nil && about.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0 {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}
}
