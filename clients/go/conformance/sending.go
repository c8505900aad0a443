package main

import (
	"bytes"
	"context"
	"time"

	sidecar "ws-sidecar.dev/client"
)

// inFlight is how many messages load keeps on their way: what a sender holds by default.
const inFlight = 4_096

// beginSending begins to send in the order of the commands; the receipts come beside others.
func (r *runner) beginSending(do string, a *arguments) (work, error) {
	sender, err := r.senders.get(a.Sender)
	if err != nil {
		return nil, err
	}
	switch do {
	case "sender_close":
		return func() (any, error) { return struct{}{}, sender.Close() }, nil
	case "sender_send":
		pending, err := send(sender, a, &a.Message)
		if err != nil {
			return nil, err
		}
		return func() (any, error) { return receiptOr(pending.Wait(context.Background())) }, nil
	}
	waits := make([]func() map[string]any, 0, len(a.Messages))
	for i := range a.Messages {
		pending, err := send(sender, a, &a.Messages[i])
		waits = append(waits, func() map[string]any {
			if err != nil {
				return outcomeOf(sidecar.Receipt{}, err)
			}
			return outcomeOf(pending.Wait(context.Background()))
		})
	}
	return func() (any, error) {
		results := make([]any, 0, len(waits))
		for _, wait := range waits {
			results = append(results, wait())
		}
		return map[string]any{"results": results}, nil
	}, nil
}

func send(sender *sidecar.Sender, a *arguments, m *message) (*sidecar.Pending, error) {
	return sender.Send(context.Background(), a.IsolationKey, a.ContextToken, m.build(), a.options()...)
}

// load keeps one sender full, round and round the targets.
func load(_ *runner, c *sidecar.Client, a *arguments) (any, error) {
	ctx := context.Background()
	sender := c.Sender()
	defer func() { _ = sender.Close() }()
	message := sidecar.Binary(bytes.Repeat([]byte("x"), a.PayloadBytes))
	var pending [inFlight]*sidecar.Pending
	sent, refused := 0, 0
	began := time.Now()
	count := func(err error) {
		if err != nil {
			refused++
		} else {
			sent++
		}
	}
	end := began.Add(seconds(a.Seconds))
	for i := 0; time.Now().Before(end); i++ {
		place, target := i%inFlight, &a.Targets[i%len(a.Targets)]
		if before := pending[place]; before != nil {
			_, err := before.Wait(ctx)
			count(err)
		}
		begun, err := sender.Send(ctx, target.IsolationKey, target.ContextToken, message)
		if err != nil {
			count(err)
		}
		pending[place] = begun
	}
	for _, left := range pending {
		if left != nil {
			_, err := left.Wait(ctx)
			count(err)
		}
	}
	return map[string]any{"sent": sent, "refused": refused, "seconds": time.Since(began).Seconds()}, nil
}
