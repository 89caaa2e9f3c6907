"""A server of chats that does as the last message says: answers, is slow, breaks off. And remembers requests."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from pipezoo.serve.page import PAGE_PATHS, page_router

MODELS = [
    {"id": "tiny-llama", "object": "model", "parent": None},
    {"id": "tiny-qwen", "object": "model", "parent": None},
    {"id": "pirate", "object": "model", "parent": "tiny-llama"},
]


class FakeServer:
    """What the tests look at, and set.

    Attributes:
        requests: bodies of chats, in their order.
        key: the API key that is asked for; empty for none.
        num_gone: answers whose reader went away before their end.
        answers: text to answer with, by the text of the last message; others are answered with what they say.
        usage: of each answer; None for nothing.
        models: what `/v1/models` lists.
        is_loading: whether there is no model yet to list; a request that names none is answered.
        is_held: whether answers to what begins with `held` wait.
    """

    def __init__(self):
        self.port = 0
        self.reset()

    def reset(self):
        self.requests = []
        self.key = ""
        self.num_gone = 0
        self.answers = {}
        self.models = MODELS
        self.is_loading = False
        self.is_held = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def app(self):
        app = FastAPI()
        app.include_router(page_router())
        app.middleware("http")(self.check_key)
        app.get("/v1/models")(self.list_models)
        app.post("/v1/chat/completions")(self.chat)
        return app

    async def check_key(self, request: Request, call_next):
        if (
            self.key
            and request.url.path not in PAGE_PATHS
            and request.headers.get("authorization") != f"Bearer {self.key}"
        ):
            return refusal(401, "the API key is missing or not one of the server's.")
        return await call_next(request)

    async def list_models(self):
        if self.is_loading:
            return refusal(503, "the model is being loaded")
        return {"object": "list", "data": self.models}

    async def chat(self, request: Request):
        body = await request.json()
        self.requests.append(body)
        if "model" in body and body["model"] not in [model["id"] for model in self.models]:
            return refusal(404, f"there is no model {body['model']!r}")
        said = body["messages"][-1]["content"]
        if said == "refuse":
            return refusal(400, "'temperature' is not valid (found: 9; allowed: 0 to 2)")
        if said == "no json":
            return StreamingResponse(iter(["<html>bad gateway</html>"]), status_code=502, media_type="text/html")
        return StreamingResponse(self.events(said, body), media_type="text/event-stream")

    async def events(self, said, body):
        if said == "silent":
            await asyncio.sleep(0.5)
        while self.is_held and said.startswith("held"):
            await asyncio.sleep(0.01)
        try:
            yield ": keep-alive\n\n"
            yield event(delta={"role": "assistant", "content": ""})
            if said == "think":
                yield event(delta={"reasoning_content": "Let me see."})
            pieces = self.pieces(said)
            num_tokens = 0
            for num_tokens, piece in enumerate(pieces, start=1):
                yield event(delta={"content": piece})
                await asyncio.sleep(0.02 if said.startswith(("slow", "endless")) else 0)
                if said == "break" and num_tokens == 2:
                    return
                if said == "fail" and num_tokens == 2:
                    yield 'data: {"error": {"message": "the engine has died", "type": "internal_error"}}\n\n'
                    return
            yield event(delta={}, finish_reason="length" if said == "long" else "stop")
            usage = {"prompt_tokens": 12, "completion_tokens": num_tokens, "total_tokens": 12 + num_tokens}
            yield f"data: {json.dumps({'id': 'chat', 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.num_gone += 1
            raise

    def pieces(self, said):
        if said == "endless":
            while True:
                yield "word "
        text = self.answers.get(said, f"You said: {said}")
        for word in text.split(" "):
            yield f"{word} "


def event(**choice):
    return f"data: {json.dumps({'id': 'chat', 'choices': [{'index': 0, 'finish_reason': None, **choice}]})}\n\n"


def refusal(status, message):
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": status}
    return JSONResponse({"error": error}, status)


@contextmanager
def running(app):
    """Serves an app in a thread, and yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http="h11", log_level="error", ws="none", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(30)
