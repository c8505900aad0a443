"""An HTTP service in FastAPI: a page asks with its context token, the answer comes over its WebSocket."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Cookie, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from sidecar_client import AsyncSidecarClient, SidecarError, StreamPlace, StreamState
from sidecar_client.errors import IsolationViolation, ManagerGone, OutboxFull, StreamCancelled, TokenError

PAUSE_S = 0.04

logger = logging.getLogger("http_python")


class SignIn(BaseModel):
    """Whoever one says one is: stands for the service's own sign-in."""

    user_id: str = Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")


class Question(BaseModel):
    """What the page asks."""

    question: str = Field(max_length=2_000)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client a process, closed with it."""
    async with AsyncSidecarClient() as client:
        app.state.sidecar = client
        app.state.sessions = {}
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/sign-in", status_code=204)
async def sign_in(request: Request, response: Response, who: SignIn) -> None:
    """A session cookie, as the service's pages have one already."""
    session = secrets.token_urlsafe(32)
    request.app.state.sessions[session] = who.user_id
    response.set_cookie("session", session, httponly=True, samesite="strict")


async def signed_in(request: Request, session: Annotated[str, Cookie()] = "") -> str:
    """Who asks, by the service's own authentication and by nothing else."""
    user_id: str | None = request.app.state.sessions.get(session)
    if user_id is None:
        raise HTTPException(401, "sign in first")
    return user_id


@app.post("/ask", status_code=202)
async def ask(
    request: Request,
    asked: Question,
    user_id: Annotated[str, Depends(signed_in)],
    x_context_token: Annotated[str, Header()],
    tasks: BackgroundTasks,
) -> dict[str, str]:
    """Answers to the context that the page's token names, which must be the signed-in user's own."""
    sidecar: AsyncSidecarClient = request.app.state.sidecar
    context = await sidecar.get_context(x_context_token)
    stream_id = secrets.token_hex(16)
    words = answer(sidecar, context.isolation_key, x_context_token, user_id, stream_id, asked.question)
    await anext(words)  # what the sidecar refuses, it refuses here: the page is told
    tasks.add_task(finish, words)
    return {"stream_id": stream_id}


async def answer(
    sidecar: AsyncSidecarClient, isolation_key: str, context_token: str, user_id: str, stream_id: str, question: str
) -> AsyncGenerator[None]:
    """Sends the answer, a word each time it is asked to go on."""
    words = [f"{word} " for word in f"You asked: {question}".split()]
    for index, word in enumerate([*words, ""]):
        state = StreamState.OPEN if index < len(words) else StreamState.END
        place = StreamPlace(stream_id, index, state)
        await sidecar.send_to_user(
            isolation_key, context_token, json=word, event_type="answer", expected_user_id=user_id, stream=place
        )
        yield


async def finish(words: AsyncGenerator[None]) -> None:
    """Sends the rest; stops when the user has heard enough, or is gone."""
    try:
        while True:
            await asyncio.sleep(PAUSE_S)  # a model would be thinking
            await anext(words)
    except StopAsyncIteration:
        pass
    except (StreamCancelled, ManagerGone) as over:
        logger.info("nobody listens any more: %s", over.reason)
    except SidecarError as refusal:
        logger.warning("an answer could not be sent: %s", refusal.reason or refusal.code.name)


@app.exception_handler(SidecarError)
async def refused(request: Request, error: SidecarError) -> JSONResponse:
    """The sidecar's refusal as HTTP says it (RFC 9110 §15.5, §15.6); never its text."""
    match error:
        case TokenError():
            status = 401
        case IsolationViolation():
            status = 403
        case ManagerGone():
            status = 410
        case OutboxFull():
            status = 429
        case _:
            status = 503
    headers = {} if error.retry_after_s is None else {"Retry-After": str(max(1, round(error.retry_after_s)))}
    return JSONResponse({"reason": error.reason}, status, headers)
