// An HTTP service that answers over the WebSocket: `http_go [PORT]` serves on loopback and prints where.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	sidecar "ws-sidecar.dev/client"
)

const (
	defaultPort = "8000"
	grace       = 5 * time.Second
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("http_go: ")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	port := defaultPort
	if len(os.Args) > 1 {
		port = os.Args[1]
	}
	if err := serve(ctx, net.JoinHostPort("127.0.0.1", port)); err != nil {
		log.Fatal(err)
	}
}

// serve serves until ctx ends, then lets the answers under way end.
func serve(ctx context.Context, address string) error {
	client, err := sidecar.NewClient()
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	service := newService(client)
	server := &http.Server{Handler: service.routes(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	context.AfterFunc(ctx, func() {
		bounded, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		_ = server.Shutdown(bounded)
	})
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	service.wait(grace)
	return nil
}
