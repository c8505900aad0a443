"""What the demo agent knows. A real one asks a model here."""

_OPENING = "Hello {user}. You asked: “{question}”"
_ANSWERS = (
    (
        ("token",),
        "A context token says where a message may go: to the one connection context that you opened, for a quarter of "
        "an hour, and for what its scopes allow. Your page handed it to me beside your own sign-in. I send with it, "
        "and the sidecar compares it with the isolation key of every single message.",
    ),
    (
        ("break", "lost", "lose", "connection", "reconnect"),
        "Your page comes back by itself, after a pause of random length, so that a thousand pages do not come back at "
        "once. It then asks for the context that it had. Where the sidecar cannot give it back, your page gets a fresh "
        "one, with an isolation key of its own, and an answer that was under way ends with the old one.",
    ),
    (
        (),
        "Every word of this answer is a message of its own. All of them leave me on one gRPC stream that all users "
        "share, on a lane that only your context token opens. The sidecar put each into the outbox of your connection "
        "context and wrote it to your socket. Somebody else’s answer may be on the same stream right now: it has "
        "another lane, another manager, and another socket.",
    ),
)


def answer(user: str, question: str) -> list[str]:
    """The words of an answer, each with the space after it."""
    asked = question.lower()
    text = next(text for keywords, text in _ANSWERS if not keywords or any(word in asked for word in keywords))
    return [f"{word} " for word in f"{_OPENING.format(user=user, question=question)} {text}".split()]
