"""A model behind an HTTP server that speaks the OpenAI protocol: what every such engine shares.

An engine here is two things: a description of its server (command, environment, what its log and metrics
mean), and a client that asks it. Nothing in this file starts a process: execute/server.py does.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import httpx
from tokenizers import Tokenizer

from crewbench.devices.budget import OutOfMemory
from crewbench.engines import Account, Call, Completion, Observed, StepTimeout

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

LOCAL = "127.0.0.1"
CONNECT_S = 5.0
KEEP_S = 1.0
"""How long a connection is kept for the next call. Servers close theirs after 5 s, and one that is closed
while it is taken up again would fail a call."""

MARKS = 8
NO_EVENT = "what is no event of the protocol"
ROLES = {"system": "system", "human": "user", "ai": "assistant"}
Line = tuple[float, str]
"""A line of a server's log, and the CLOCK_MONOTONIC second at which it came."""


class ServerError(RuntimeError):
    """The server answered something else than the protocol, or no longer answers."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a server's start went, as its log tells. `load_s` and `compile_s` in seconds, None where the log
    does not tell them apart; `weights_mib` and `kv_tokens` are what it set aside; `facts` for the record."""

    load_s: float | None = None
    compile_s: float | None = None
    weights_mib: float | None = None
    kv_tokens: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def tail(log: Path, characters: int) -> str:
    """The end of a server's log."""
    try:
        return log.read_bytes()[-characters:].decode(errors="replace").strip() or "(empty)"
    except OSError:
        return "(no log)"


def size(log: Path) -> int:
    """How many bytes a server's log has: what comes after them is said later. 0 if there is none."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def said_since(log: Path, size: int) -> str:
    """What a server's log says after its first `size` bytes."""
    try:
        with log.open("rb") as file:
            file.seek(size)
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@dataclass(slots=True)
class Server:
    """`devices` are torch device strings; `length` "fixed" makes exactly `tokens` ids, greedily;
    `concurrency` is how many sequences are in flight at most; `budget_mib` of `device_mib` is what the
    server may take of each device (None: its own default); `threads` are torch's, on a CPU. `pid` is the
    process that answers for the server, where CUDA speaks of "this process"; `ends` are the ids that end a
    text, as the checkpoint says."""

    path: str
    dtype: str
    devices: Sequence[str]
    length: str
    tokens: int
    account: Account
    port: int
    log: Path
    concurrency: int = 1
    threads: int = 1
    budget_mib: float | None = None
    device_mib: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    pid: int = field(default_factory=os.getpid)
    context_tokens: int = 0
    ends: int | list[int] | None = None
    tokenizer: Tokenizer | None = None
    _http: httpx.Client | None = None

    health: ClassVar[str] = "/health"
    metrics: ClassVar[str | None] = None
    names: ClassVar[dict[str, str]] = {}
    """Column of servers.csv -> the server's metric of that meaning."""

    no_memory: ClassVar[tuple[str, ...]] = ("OutOfMemoryError", "CUDA out of memory")
    """What its log says where memory was too little."""

    def __post_init__(self) -> None:
        config = json.loads((Path(self.path) / "config.json").read_text(encoding="utf-8"))
        self.context_tokens = int(config["max_position_embeddings"])
        generation = Path(self.path) / "generation_config.json"
        if generation.exists():
            config = json.loads(generation.read_text(encoding="utf-8"))
        self.ends = config.get("eos_token_id")
        own = Path(self.path) / "tokenizer.json"
        # Once, before the clients are forked; Transformers' own tokenizer would take seconds to import.
        self.tokenizer = Tokenizer.from_file(str(own)) if own.exists() else None

    # ---- what each server says of itself

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def understood(self, lines: Sequence[Line]) -> Start:
        """What the log of a server that is ready tells of its start."""
        return Start()

    def out_of_memory(self, log: str, phase: str) -> OutOfMemory | None:
        """What the last line of a log that says so says of too little memory."""
        said = (line for line in reversed(log.splitlines()) if any(sign in line for sign in self.no_memory))
        line = next(said, None)
        return None if line is None else OutOfMemory.from_cuda(RuntimeError(line), phase, pid=self.pid)

    def chat(self, messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
        """Path and body of a streamed request for the answer to a conversation."""
        raise NotImplementedError

    def again(self, call: Call) -> tuple[str, dict[str, Any]]:
        """Path and body of a streamed request with exactly the prompt of `call`."""
        return self.chat(call.messages)

    def shown(self, call: Call) -> tuple[str, dict[str, Any]]:
        """Path and body of a request, not streamed, that shows ids and their log probabilities."""
        raise NotImplementedError(f"{type(self).__name__} shows no log probabilities")

    # ---- the client

    @property
    def fixed(self) -> bool:
        return self.length == "fixed"

    @property
    def http(self) -> httpx.Client:
        """This process's own client: made at first use, so a forked process does not share sockets."""
        if self._http is None:
            limits = httpx.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_S
            )
            self._http = httpx.Client(base_url=f"http://{LOCAL}:{self.port}", limits=limits, trust_env=False)
        return self._http

    def complete(self, messages: list[BaseMessage], deadline_s: float) -> Completion:
        said = [{"role": ROLES[m.type], "content": m.content} for m in messages]
        return self._ask(*self.chat(said), deadline_s, said)

    def replay(self, call: Call, deadline_s: float) -> Completion:
        return self._ask(*self.again(call), deadline_s, call.messages)

    def observe(self, call: Call, deadline_s: float) -> Observed:
        path, body = self.shown(call)
        before = size(self.log)
        try:
            reply = self.http.post(path, json=body, timeout=max(0.001, deadline_s - time.monotonic()))
            return observed(reply.status_code, reply.text)
        except (httpx.HTTPError, ServerError) as error:
            raise self._typed(error, deadline_s, "decode", before) from error

    def _ask(
        self, path: str, body: dict[str, Any], deadline_s: float, messages: list[dict[str, str]]
    ) -> Completion:
        before = size(self.log)
        answer = Answer(called_s=time.monotonic(), messages=messages)
        try:
            with self.account.sequence() as hold:
                # Nobody tells the prompt's ids before the answer ends.
                hold(self._count(str(m["content"]) for m in messages) + self.tokens)
                self._stream(path, body, deadline_s, answer)
        except (httpx.HTTPError, ServerError, StepTimeout) as error:
            typed = self._typed(error, deadline_s, "decode" if answer.token_s else "prefill", before)
            if answer.sent_s:
                typed.completion = answer.completion()
            raise typed from error
        return answer.completion()

    def _stream(self, path: str, body: dict[str, Any], deadline_s: float, answer: Answer) -> None:
        left = max(0.001, deadline_s - time.monotonic())
        timeout = httpx.Timeout(left, connect=min(left, CONNECT_S))
        answer.sent_s = time.monotonic()
        with self.http.stream("POST", path, json=body, timeout=timeout) as reply:
            if reply.status_code != 200:
                said = reply.read()[:300].decode(errors="replace")
                raise ServerError(f"the server answered {reply.status_code}: {said}")
            with cut_off(reply, deadline_s):
                for event in events(reply.iter_lines()):
                    answer.take(event, time.monotonic())
                    if time.monotonic() > deadline_s:
                        raise StepTimeout(f"the step's deadline passed after {len(answer.token_s)} pieces")
        answer.check()

    def _typed(self, error: Exception, deadline_s: float, phase: str, before: int) -> Exception:
        """What a call ended with, in words that hold the end of the server's log. Memory was too little only
        where the answer says so, or what came to the log after `before`, its size when the call began."""
        ends = f"the server's log ends: {tail(self.log, 1000)}"
        if isinstance(error, httpx.HTTPError) and time.monotonic() >= deadline_s - 0.05:
            error = StepTimeout("the step's deadline passed while the server was silent")
        if isinstance(error, StepTimeout):
            return StepTimeout(f"{error}; {ends}")
        said = str(error) or type(error).__name__
        if (oom := self.out_of_memory(f"{said_since(self.log, before)}\n{said}", phase)) is not None:
            return oom
        return ServerError(f"{said}; {ends}")

    def count_tokens(self, messages: list[BaseMessage]) -> int:
        """The ids of what is said, and MARKS for each message: a little more than the template adds."""
        return self._count(str(m.content) for m in messages)

    def _count(self, said: Iterable[str]) -> int:
        texts = list(said)
        if self.tokenizer is None:
            return sum(len(text) + 3 for text in texts) // 4 + MARKS * len(texts)
        return sum(len(e.ids) + MARKS for e in self.tokenizer.encode_batch(texts, add_special_tokens=False))


@dataclass(slots=True)
class Answer:
    """A streamed answer as it comes in. Token instants are those of the pieces that brought them."""

    called_s: float
    messages: list[dict[str, str]]
    sent_s: float = 0.0
    text: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    usage: dict[str, int] = field(default_factory=dict)
    finished: bool = False

    def take(self, event: dict[str, Any], now: float) -> None:
        """One event of the stream. ServerError if it is an error or none of the protocol."""
        if event.get("error"):
            raise ServerError(f"the server answered an error: {str(event['error'])[:300]}")
        try:
            self._add(event, now)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(f"the server sent {NO_EVENT}: {json.dumps(event)[:200]}") from error

    def _add(self, event: dict[str, Any], now: float) -> None:
        if usage := event.get("usage"):
            self.usage = {name: int(usage[name]) for name in ("prompt_tokens", "completion_tokens")}
        self.prompt_ids = event.get("prompt_token_ids") or self.prompt_ids
        for choice in event["choices"]:
            self.prompt_ids = choice.get("prompt_token_ids") or self.prompt_ids
            piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            ids = [int(i) for i in choice.get("token_ids") or []]
            self.text += piece
            self.output_ids += ids
            self.token_s += [now] * (len(ids) or bool(piece))
            self.finished = self.finished or choice.get("finish_reason") is not None

    def check(self) -> None:
        """ServerError if the stream ended before the answer did."""
        if not self.finished or not self.usage:
            raise ServerError(f"the server's answer broke off after {len(self.token_s)} pieces")

    @property
    def prompt_tokens(self) -> int:
        return self.usage.get("prompt_tokens", len(self.prompt_ids))

    @property
    def output_tokens(self) -> int:
        return self.usage.get("completion_tokens", len(self.output_ids))

    def completion(self) -> Completion:
        """The call until now. With a server, `prompt_s` is when the request was sent."""
        return Completion(
            text=self.text,
            prompt_ids=self.prompt_ids,
            output_ids=self.output_ids,
            called_s=self.called_s,
            prompt_s=self.sent_s,
            token_s=self.token_s,
            ended_s=time.monotonic(),
            counted=(self.prompt_tokens, self.output_tokens),
            messages=self.messages,
        )


def observed(status: int, text: str) -> Observed:
    """The answer to a request with `logprobs` and `return_token_ids`. ServerError for anything else."""
    if status != 200:
        raise ServerError(f"the server answered {status}: {text[:300]}")
    try:
        choice = json.loads(text)["choices"][0]
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        found = Observed([int(i) for i in ids], logprobs=[float(value) for value in logprobs])
    except (ValueError, KeyError, IndexError, TypeError):
        raise ServerError(f"the server showed no ids with log probabilities: {text[:300]}") from None
    if len(found.output_ids) != len(found.logprobs):
        raise ServerError(f"{len(found.output_ids)} ids came with {len(found.logprobs)} log probabilities")
    return found


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The data of server-sent events. ServerError for data that is no JSON object."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise ServerError(f"the server sent {NO_EVENT}: {data[:200]!r}")
        yield event


@contextmanager
def cut_off(reply: httpx.Response, deadline_s: float) -> Iterator[None]:
    """Reading from `reply` in here fails with an httpx error at the CLOCK_MONOTONIC second `deadline_s`.

    httpx's own limit begins anew with each piece: a server that falls silent late would be waited for twice.
    """
    connection = reply.extensions["network_stream"].get_extra_info("socket")

    def cut() -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline_s - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
