package main

import (
	"context"
	"errors"
	"log"
	"time"

	sidecar "ws-sidecar.dev/client"
)

const (
	pause                 = 40 * time.Millisecond
	maxQuestionCharacters = 2_000
)

// newAgent is the agent and its two handlers; client is its connection to the sidecar, closed by whoever made it.
func newAgent(client *sidecar.Client) *sidecar.Agent {
	agent := sidecar.NewAgent("demo", sidecar.WithClient(client), sidecar.WithGrace(grace))
	agent.OnMessage("ask", ask)
	agent.OnMessage("attack", func(
		ctx context.Context, user *sidecar.AgentContext, message *sidecar.InboundMessage,
	) error {
		return attack(ctx, client, user, message)
	})
	return agent
}

// ask answers a question word by word, until it is all said or the user has heard enough.
func ask(ctx context.Context, user *sidecar.AgentContext, message *sidecar.InboundMessage) error {
	var asked struct {
		Question string `json:"question"`
	}
	_ = message.Decode(&asked) // what a user says is never trusted to be anything
	stream := message.Reply(sidecar.EventType("agent.word"))
	said := 0
	for _, word := range answer(user.User.UserID, cut(asked.Question)) {
		if _, err := stream.Send(ctx, sidecar.Text(word)); err != nil {
			return stopped(ctx, user, message, said, err)
		}
		said++
		select {
		case <-time.After(pause): // a model would be thinking
		case <-ctx.Done():
			return stopped(ctx, user, message, said, ctx.Err())
		}
	}
	return nil
}

// stopped says how far the answer came, where the user wanted no more of it.
func stopped(
	ctx context.Context, user *sidecar.AgentContext, message *sidecar.InboundMessage, said int, why error,
) error {
	log.Printf("stopped after %d words", said)
	if !message.Cancelled() || user.Ended() {
		return why
	}
	note := sidecar.JSON(map[string]int{"words": said})
	note.EventType, note.ReplyTo = "agent.stopped", message.ID
	_, err := user.Send(context.WithoutCancel(ctx), note)
	return errors.Join(why, err)
}

// attack sends into a context that the user chose, with the user's own token; it says what the sidecar answered.
func attack(
	ctx context.Context, client *sidecar.Client, user *sidecar.AgentContext, message *sidecar.InboundMessage,
) error {
	var asked struct {
		Victim string `json:"victim_isolation_key"`
	}
	_ = message.Decode(&asked)
	forged := sidecar.JSON(map[string]string{"from": user.User.UserID})
	forged.EventType = "agent.attack"
	verdict := map[string]string{"code": "OK", "reason": ""}
	_, err := client.SendToUser(
		ctx, cut(asked.Victim), user.ContextToken(), forged, sidecar.ExpectedUserID(user.User.UserID))
	var refused *sidecar.Error
	if errors.As(err, &refused) {
		verdict["code"], verdict["reason"] = refused.CodeName(), string(refused.Reason)
	}
	note := sidecar.JSON(verdict)
	note.EventType, note.ReplyTo = "agent.verdict", message.ID
	_, err = user.Send(ctx, note)
	return err
}

func cut(text string) string {
	characters := []rune(text)
	return string(characters[:min(len(characters), maxQuestionCharacters)])
}
