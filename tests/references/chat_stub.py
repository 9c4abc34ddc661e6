"""An API of chat completions that does what a test tells it to, and writers of text in place of models."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

from max_zimage.enhancer.base import Enhancer, EnhancerFailed
from max_zimage.enhancer.chat import ChatAnswer, ChatAsked, ChatModel, ChatRefused


def completion(text: object, reason: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


@dataclass
class ChatStub:
    """The API.

    Attributes:
        url: Its address, up to /v1.
        status: Of its answers.
        content: What a prompt is answered with, as bytes of the body.
        location: Where it redirects to; empty for nowhere.
        wait: Seconds before each of its pieces.
        pieces: In how many pieces a body comes.
        asked: Bodies of the requests, as JSON.
        headers: Of the last request.
        models: What it lists.
    """

    url: str = ""
    status: int = 200
    content: Callable[[dict[str, Any]], bytes] = lambda body: completion(f"{body['messages'][-1]['content']} on silk")
    location: str = ""
    wait: float = 0.0
    pieces: int = 1
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    models: Any = field(default_factory=lambda: {"data": [{"id": "first"}, {"id": "second"}]})


@contextlib.contextmanager
def chat_stub() -> Iterator[ChatStub]:
    """Run one, on a port of its own."""
    stub = ChatStub()

    class Handler(BaseHTTPRequestHandler):
        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(json.dumps(stub.models).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.asked.append(body | {"path": self.path})
            stub.headers = dict(self.headers)
            self.answer(stub.content(body))

        def answer(self, content: bytes) -> None:
            size = -(-len(content) // stub.pieces) or 1
            with contextlib.suppress(OSError):  # who asked has left
                self.send_response(stub.status)
                if stub.location:
                    self.send_header("Location", stub.location)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                for at in range(0, len(content), size):
                    time.sleep(stub.wait)
                    self.wfile.write(content[at : at + size])
                    self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Silk(Enhancer):
    """Adds two words, or fails where the prompt is "fail"; says how often it was asked, and with which seeds."""

    name = "silk"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    @override
    def write(self, prompt: str, seed: int) -> str:
        self.asked.append((prompt, seed))
        if prompt == "fail":
            raise EnhancerFailed("has no thread left")
        return f"{prompt} on silk"


class Echo(Silk, ChatModel):
    """Answers a chat with its words, one by one, from the last; refuses the word "no"."""

    name = "echo"
    sampling = frozenset({"temperature"})
    drafts = True
    wait = 0.0

    @property
    @override
    def most_tokens(self) -> int:
        return 8

    @override
    def check(self, asked: ChatAsked) -> None:
        if asked.messages[-1].content == "no":
            raise ChatRefused("messages", "messages: echo does not say no")

    @override
    def chat(self, asked: ChatAsked) -> ChatAnswer:
        words = asked.messages[-1].content.split()[::-1]
        said: list[str] = []
        for word in words[: asked.max_tokens]:
            time.sleep(self.wait)
            said.append(word if not said else f" {word}")
            asked.on_text(said[-1])
            asked.on_draft("".join(said) + " ...")
        whole = len(words) <= asked.max_tokens
        return ChatAnswer(text="".join(said), is_whole=whole, prompt_tokens=len(words), tokens=len(said))
