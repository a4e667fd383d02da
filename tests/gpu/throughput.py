#!/usr/bin/env python
"""Is a server's throughput what others measure, and what does CrewAI take of it? One server, one run.

    python tests/gpu/throughput.py --model DIR --engine vllm --tokens 256 --out OUT

Eight agents ask one server at once, in interleaved blocks of three: through CrewAI as in a warm round
(`crew`), the same prompts' ids straight through the client as in a replay (`calls`), and `vllm bench serve`
with as many prompts of their mean length (`bench`). Each asks for the same number of output tokens, so a
ratio of durations is one of throughputs. Writes small CSV files and prints one table; exit code 1 when a
claim is not met. Without vLLM's benchmark (another engine, --device slot) only the first two are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT / "scripts"), str(HERE)]

import claims  # noqa: E402  the paths above come first
from claims import Measured, Verdict  # noqa: E402
from crewbench import config, extras, metrics, provenance, records  # noqa: E402
from crewbench.checkpoint import manifest  # noqa: E402
from crewbench.devices.inventory import Device, list_devices  # noqa: E402
from crewbench.devices.lease import directory, lease  # noqa: E402
from validity import (  # noqa: E402
    SLOT_MIB,
    Timed,
    at_least,
    judging,
    run_blocks,
    say,
    spans,
    write,
    write_environment,
)

TAX = "eight agents through CrewAI against their calls alone"
BENCH = "the calls alone against vllm bench serve"
BENCH_NEEDS = "vllm"
"""The engine whose own benchmark is the third side."""


class Crew:
    """A server as a trial starts it, the clients of its agents, and three ways to ask it."""

    def __init__(
        self, model: Path, devices: tuple[Device, ...], args: argparse.Namespace, storage: Path
    ) -> None:
        from crewbench.execute.server import Host
        from crewbench.execute.worker import Job, StepOrder

        described = manifest.load(model)
        self.path = described.directory(model)
        texts, problems = config.read_crew(config.Crew(), ROOT)
        if problems:
            raise ValueError("\n".join(map(str, problems)))
        agents = texts.agents[: args.agents]
        self.tokens = args.tokens
        self.orders = [StepOrder(a.name, a, texts.tasks["explain"]) for a in agents]
        job = Job(
            worker="server",
            engine=args.engine,
            model_path=str(self.path),
            dtype=described.dtype,
            devices=devices,
            concurrency=len(agents),
            threads=args.threads,
            length="fixed",
            tokens=args.tokens,
            step_timeout_s=300.0,
            storage=str(storage),
            zygote=False,
            runner_options={"clients": args.clients},
            load_timeout_s=600.0,
            asked_s=time.monotonic(),
        )
        self.host = Host(job, time.monotonic())
        try:
            self.stages = self.host.start()
        except BaseException:
            self.host.say_log()
            raise
        self.pool = ThreadPoolExecutor(len(agents))
        self.replays: list[StepOrder] = []
        self.prompt_tokens: list[int] = []

    def _burst(self, orders: list[Any]) -> tuple[float, list[Any]]:
        """All orders at once: seconds from the first one's start to the last one's end, and their results."""
        began = time.monotonic()
        results = list(self.pool.map(self.host.clients.run, orders))
        seconds = time.monotonic() - began
        for result in results:
            if result.status != records.Status.OK:
                raise RuntimeError(f"step {result.step}: {result.error}")
            if result.llm_calls != 1 or result.output_tokens != self.tokens:
                raise RuntimeError(
                    f"step {result.step} took {result.llm_calls} calls, {result.output_tokens} tokens"
                )
        return seconds, results

    def crew(self) -> Timed:
        """A warm round: every agent's task through CrewAI, the adapter and the client."""
        seconds, results = self._burst(self.orders)
        self.replays = [replace(o, calls=r.calls) for o, r in zip(self.orders, results, strict=True)]
        self.prompt_tokens = [r.prompt_tokens for r in results]
        return Timed(seconds, [i for r in results for ids in r.output_ids for i in ids])

    def calls(self) -> Timed:
        """The calls of the last warm round again, by their prompts' ids."""
        seconds, results = self._burst(self.replays)
        return Timed(seconds, [i for r in results for ids in r.output_ids for i in ids])

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.host.stop()


class Bench:
    """`vllm bench serve` in a process of its own, beside a server that runs."""

    def __init__(self, crew: Crew, log: Path) -> None:
        server = crew.host.server
        self.count, self.tokens, self.log = len(crew.orders), crew.tokens, log
        self.seed, self.said = 0, []
        self.words = [
            *("--backend", "openai", "--endpoint", "/v1/completions"),
            *("--host", "127.0.0.1", "--port", str(server.port)),
            *("--model", str(crew.path), "--served-model-name", "crew", "--tokenizer", str(crew.path)),
            *("--dataset-name", "random", "--random-range-ratio", "0"),
            *("--random-input-len", str(round(sum(crew.prompt_tokens) / self.count))),
            *("--random-output-len", str(crew.tokens)),
            *("--num-prompts", str(self.count), "--max-concurrency", str(self.count)),
            *("--temperature", "0", "--ignore-eos", "--disable-tqdm"),
        ]
        self.process = subprocess.Popen(
            [extras.interpreter(BENCH_NEEDS), str(HERE / "vllm_bench.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            text=True,
            # It asks over HTTP only: no context of its own on the GPU that is measured.
            env={**os.environ, **server.environment(), "CUDA_VISIBLE_DEVICES": ""},
        )

    def run(self) -> Timed:
        self.seed += 1
        self.process.stdin.write(json.dumps([*self.words, "--seed", str(self.seed)]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"vllm bench serve ended: {self.log.read_text(errors='replace')[-1500:]}")
        said = json.loads(line)
        if said["completed"] != self.count or said["total_output_tokens"] != self.count * self.tokens:
            raise RuntimeError(f"vllm bench serve did other work than was asked: {said}")
        self.said.append(said)
        return Timed(said["duration"], [])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def closing(thing: Any) -> Iterator[Any]:
    try:
        yield thing
    finally:
        thing.close()


def measure(crew: Crew, args: argparse.Namespace) -> tuple[list[Verdict], list[Measured], dict[str, Any]]:
    """The sides in interleaved blocks, judged by pairs of durations."""
    crew.crew()  # its calls are what the others need
    sides: dict[str, Callable[[], Timed]] = {"crew": crew.crew, "calls": crew.calls}
    if args.engine != BENCH_NEEDS:
        rows, _ = run_blocks("throughput", sides, args.seconds, args.pairs)
        return [tax(rows)], rows, {}
    with closing(Bench(crew, args.out / "vllm-bench.log")) as bench:
        rows, _ = run_blocks("throughput", {**sides, "bench": bench.run}, args.seconds, args.pairs)
        like = claims.pairs(rows, "calls", "bench")
        note = f"its mean prompt: {bench.said[-1]['total_input_tokens'] / bench.count:.0f} tokens"
        found = claims.ratio("bench", BENCH, 3.0, spans(like, "seconds"), note)
        return [tax(rows), found], rows, {"bench": bench.said[-1]}


def tax(rows: list[Measured]) -> Verdict:
    return claims.ratio("tax", TAX, 5.0, spans(claims.pairs(rows, "crew", "calls"), "seconds"))


def throughputs(rows: list[Measured], tokens: int) -> dict[str, str]:
    """Output tokens/s of each side: min / median / max over its bursts."""
    found = {}
    for side in dict.fromkeys(r.side for r in rows):
        rates = sorted(tokens / r.seconds for r in rows if r.side == side)
        found[side] = f"{rates[0]:.1f} / {metrics.median(rates):.1f} / {rates[-1]:.1f}"
    return found


def body(args: argparse.Namespace, scratch: Path) -> int:
    from crewbench import crews

    os.environ.update(crews.OFFLINE)
    os.environ["CREWBENCH_LEASE_DIR"] = str(directory())
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    args.out.mkdir(parents=True, exist_ok=True)
    verdicts: list[Verdict] = []
    devices = list_devices(args.device, args.gpus, None if args.device == "gpu" else SLOT_MIB)
    with lease(devices, args.gpus, holder="throughput") as leased:
        before, began = provenance.pressure(), time.monotonic()
        try:
            crew = Crew(args.model, leased.devices, args, scratch / "crewai")
        except Exception:
            traceback.print_exc()
            return 1
        with closing(crew):
            say(f"the server was ready after {time.monotonic() - began:.0f} s")
            rows, said = [], {}
            with judging(verdicts, "tax", TAX):
                found, rows, said = measure(crew, args)
                verdicts += found
            write(args.out / "measured.csv", Measured, rows)
            facts = {
                **provenance.environment(ROOT),
                "host": provenance.host(),
                "devices": {d.uuid: d.name for d in leased.devices},
                "model": {
                    "id": manifest.load(args.model).model_id,
                    "sha256": manifest.load(args.model).sha256,
                },
                "engine": args.engine,
                "clients": args.clients,
                "agents": len(crew.orders),
                "tokens": {"prompts": crew.prompt_tokens, "output": args.tokens},
                "throughput": throughputs(rows, args.tokens * len(crew.orders)),
                # Without the interpreter, which is another on every machine.
                "command": [w.replace(str(crew.path), "MODEL") for w in crew.stages.facts["command"][1:]],
                **said,
                "pressure": provenance.pressure_since(before),
                "seconds": time.monotonic() - began,
            }
            write_environment(args.out / "environment.csv", facts)
    write(args.out / "verdicts.csv", Verdict, verdicts)
    print(claims.table(verdicts))
    for side, rates in throughputs(rows, args.tokens * args.agents).items():
        print(f"{side}: {rates} output tokens/s (min / median / max)")
    return int(any(v.outcome == claims.Outcome.NOT_MET for v in verdicts))


def main() -> int:
    from crewbench.execute.guardian import supervised

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a directory that scripts/model.py made")
    parser.add_argument("--out", type=Path, required=True, help="the directory for the CSV files")
    parser.add_argument("--engine", default="vllm", help="an engine that is a server (vllm)")
    parser.add_argument("--device", choices=("auto", "gpu", "slot"), default="gpu")
    parser.add_argument("--gpus", type=at_least(1), default=1, help="devices of the server (1)")
    parser.add_argument("--agents", type=at_least(1), default=8, help="agents of config/agents.yaml (8)")
    parser.add_argument("--clients", choices=("processes", "threads"), default="processes")
    parser.add_argument("--tokens", type=at_least(2), default=256, help="output tokens of a call (256)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads of torch (1)")
    parser.add_argument("--pairs", type=at_least(claims.LEAST), default=12, help="the fewest blocks (12)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="about how long; more blocks fill it (60)"
    )
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="crewbench-"))
    return supervised(lambda: body(args, scratch), scratch)


if __name__ == "__main__":
    sys.exit(main())
