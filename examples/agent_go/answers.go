package main

import (
	"fmt"
	"strings"
)

// answers are what the agent knows, by the words that ask for it. A real one asks a model here.
var answers = []struct {
	keywords []string
	text     string
}{
	{
		[]string{"token"},
		"A context token says where a message may go: to the one connection context that you opened, for a " +
			"quarter of an hour, and for what its scopes allow. The sidecar gave it to me with your question. I " +
			"send with it, and the sidecar compares it with the isolation key of every single message.",
	},
	{
		[]string{"break", "lost", "lose", "connection", "reconnect", "reload"},
		"Your page comes back by itself, after a pause of random length, so that a thousand pages do not come " +
			"back at once. It then resumes the context that it had, and says how far it has read: what I said " +
			"meanwhile waits in the outbox, and arrives in order, each word once. Try it: reload this page now, " +
			"before I have finished. Only where you stay away for too long do you get a fresh context, and an " +
			"answer under way ends with the old one.",
	},
	{
		[]string{"stop", "cancel", "enough"},
		"Press stop, and your page sends one frame: cancel, with the id of your question. The sidecar closes " +
			"this stream on the spot, refuses every further word of mine, and tells me at once. My handler is " +
			"cancelled where it waits, and nobody else’s is. I can go on for a while if you would like to try it: " +
			"a stream that nobody stops ends with its last chunk, one that fails says so, and one that falls " +
			"silent is ended by the sidecar itself.",
	},
	{
		[]string{},
		"Every word of this answer is a chunk of one response stream. All of them leave me on one gRPC stream " +
			"that all users share, on a lane that only your context token opens. The sidecar put each into the " +
			"outbox of your connection context and wrote it to your socket. Somebody else’s answer may be on the " +
			"same stream right now: it has another lane, another manager, and another socket.",
	},
}

// answer is the words of an answer, each with the space after it.
func answer(user, question string) []string {
	words := strings.Fields(fmt.Sprintf(
		"Hello %s. You asked: “%s” %s", user, question, answerTo(strings.ToLower(question))))
	for i := range words {
		words[i] += " "
	}
	return words
}

func answerTo(asked string) string {
	for _, each := range answers {
		for _, keyword := range each.keywords {
			if strings.Contains(asked, keyword) {
				return each.text
			}
		}
	}
	return answers[len(answers)-1].text
}
