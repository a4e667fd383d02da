"""Engines whose server is toy_server.py, and a trial of them.

The servers misbehave; what starts, watches and asks them is the project's own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from crewbench.deployment import Deployment, Step, Worker
from crewbench.devices.inventory import slots
from crewbench.engines import ENGINES, EngineInfo
from crewbench.engines.openai import Server, Start
from crewbench.execute import server
from crewbench.execute.run import Bench, Records, execute
from crewbench.execute.server import ServerRunner
from crewbench.execute.setup import Setup
from crewbench.start import STARTS
from crewbench.trial import AgentSpec, Cell, Spec, TaskSpec

SERVER = Path(__file__).with_name("toy_server.py")
BUDGET_MIB = 56


@dataclass(slots=True)
class Toy(Server):
    start: ClassVar[str] = "ready"
    metrics: ClassVar[str | None] = "/metrics"
    names: ClassVar[dict[str, str]] = {
        "running": "toy:running",
        "preemptions": "toy:preempted",
        "kv_used_share": "toy:kv_used",
        "waiting": "toy:nobody_tells",
    }

    def command(self) -> list[str]:
        return [sys.executable, str(SERVER), "--port", str(self.port), "--start", self.start]

    def understood(self, lines: Any) -> Start:
        return Start(load_s=0.001, weights_mib=10.0, kv_tokens=1000)

    def chat(self, messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
        return "/v1/chat/completions", {"messages": messages, "stream": True}


class Never(Toy):
    start = "never"


class NoMemory(Toy):
    start = "no-memory"


class Exits(Toy):
    start = "exits"


ENGINES_OF_TOYS = {
    name: EngineInfo(__name__, cls.__name__, name, imports=("crewai",), runners=("server",))
    for name, cls in {"toy": Toy, "toy-never": Never, "toy-no-memory": NoMemory, "toy-exits": Exits}.items()
}


@contextmanager
def known() -> Iterator[None]:
    """These engines are the project's in here, and nowhere else in this process."""
    ENGINES.update(ENGINES_OF_TOYS)
    try:
        yield
    finally:
        for name in ENGINES_OF_TOYS:
            del ENGINES[name]


def main(*args: Any) -> None:
    """A worker's whole life, in a process that knows these engines."""
    with known():
        server.main(*args)


class Runner(ServerRunner):
    entry = staticmethod(main)


def model(place: Path) -> Path:
    """A directory that looks like a checkpoint to a server's client."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text('{"max_position_embeddings": 512, "eos_token_id": 2}')
    return place


def trial(
    place: Path, work: dict[str, tuple[str, list[str]]], *, warm_rounds: int, load_s: float, step_s: float
) -> Records:
    """Run servers of these engines, each with its agents. `work`: server -> (engine, the word that says what
    becomes of each of its agents' requests)."""
    words = [(name, word) for name, (_, told) in work.items() for word in told]
    agents = tuple(
        AgentSpec(f"agent{i}", "Tester", f"see what toy:{word} does", "none")
        for i, (_, word) in enumerate(words)
    )
    task = TaskSpec("explain", "Say what breaks first.", "One word.")
    spec = Spec(
        cell=Cell("served", len(work), len(agents), "toy", "process"),
        repeat=1,
        warm_rounds=warm_rounds,
        exclusive=False,
        model_dir="",
        dtype="float32",
        output_length="fixed",
        output_tokens=3,
        device_kind="slot",
        device_count=len(work),
        memory_mib=BUDGET_MIB,
        sampler_hz=1.0,
        load_timeout_s=load_s,
        step_timeout_s=step_s,
        threads_per_worker=1,
        agents=agents,
        tasks=(task,),
    )
    scratch = place / "scratch"
    scratch.mkdir(parents=True)
    devices = slots(len(work), BUDGET_MIB)
    runner = Runner(
        Setup(
            spec=spec,
            start=STARTS["process"],
            model_path=model(place / "model"),
            weight_files=(),
            weights_mib=10.0,
            kv_mib_per_token=0.01,
            ledger=scratch / "ledger.json",
            scratch=scratch,
            lease_fds=(),
        )
    )
    deployment = Deployment(
        workers=tuple(
            Worker(name, (i,), engine, "server", concurrency=max(1, len(told)))
            for i, (name, (engine, told)) in enumerate(work.items())
        ),
        steps=tuple(Step(f"{name} {word}", name, i, "explain") for i, (name, word) in enumerate(words)),
    )
    bench = Bench(
        devices=tuple(devices),
        start=runner.start,
        memory_free=lambda: None,
        agents=agents,
        tasks={task.name: task},
        warm_rounds=warm_rounds,
        load_timeout_s=load_s,
        step_timeout_s=step_s,
        zero_s=time.monotonic(),
    )
    with known():
        return execute([deployment], bench)
