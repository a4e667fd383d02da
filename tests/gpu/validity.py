#!/usr/bin/env python
"""Is what crewbench measures true? One agent, one device, about three minutes, each claim with its interval.

    python scripts/model.py --out DIR \\
        --spec '{"kind": "synthetic", "shape": "mistral-7b", "seed": 0, "dtype": "bfloat16"}'
    python tests/gpu/validity.py --model DIR --trials results/trials --out results/reference/1x-h200-validity

The agent's inference time against a bare `generate` and against a benchmark's way of timing, in interleaved
blocks; the sampler on against off; energy by the card's counter against its integrated power; and, of trials
that were run before (--trials), whether stages add up and whether every mode gives the same ids.
Writes small CSV files and prints one table. Exit code 1 when a claim is not met; an interval that is too wide
for its limit wants more pairs (--seconds), or on a noisy host a generation that waits for the GPU
(--prompt-tokens 24000 --tokens 2). Without --model the trials alone are judged, on any machine. A CPU slot
(--device slot) runs all but the energy, to try the script, not to judge by.
"""

from __future__ import annotations

import argparse
import csv
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(Path(__file__).resolve().parent)]

import claims  # noqa: E402  the paths above come first
from claims import Answer, Measured, Outcome, Prompt, Sample, Verdict, Window  # noqa: E402
from crewbench import config, provenance, records  # noqa: E402
from crewbench.checkpoint import manifest  # noqa: E402
from crewbench.devices.inventory import Device, list_devices  # noqa: E402
from crewbench.devices.lease import directory, lease  # noqa: E402
from crewbench.devices.sampler import Sampler  # noqa: E402

HZ = 20.0
WINDOW_S = 5.0
WARM_UP = 1
SLOT_MIB = 4096

RAW = "agent against raw generate"
BENCHMARK = "agent against optimum-benchmark's way"
SAMPLER = "sampler on against off"
ENERGY = "integrated power against the card's counter"
STAGES = "time of a round that no stage explains"
MODES = "output ids of one prompt in every eager mode"
ENGINE = "eager"
"""The engine whose greedy ids are to be the same each time: a static cache's masked attention is not, in
bfloat16, and a server's depend on what it batches."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One generation: seconds as in Measured, and its output ids."""

    seconds: float
    output_ids: list[int]
    prefill_s: float | None = None
    decode_s: float | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """One round of a trial and the share of it that no stage explains."""

    trial_id: str
    round: int
    attempt: int
    status: str
    makespan_s: float
    unexplained_pct: float


# ---- what is measured


class Bench:
    """One loaded eager engine, and the ways to let it generate the same number of ids."""

    def __init__(
        self, model: Path, device: Device, tokens: int, threads: int, storage: Path, prompt_tokens: int = 0
    ) -> None:
        from crewbench.execute.worker import Job, StepOrder, start_engine

        described = manifest.load(model)
        crew, _ = config.read_crew(config.Crew(), ROOT)
        self.job = Job(
            worker="worker",
            engine="eager",
            model_path=str(described.directory(model)),
            dtype=described.dtype,
            devices=(device,),
            concurrency=1,
            threads=threads,
            length="fixed",
            tokens=tokens,
            step_timeout_s=600.0,
            storage=str(storage),
            zygote=False,
            engine_options={"loader": "parallel"},
        )
        self.order = StepOrder("agent0", crew.agents[0], crew.tasks["explain"])
        self.engine, _ = start_engine(self.job, time.monotonic(), lambda message: None)
        if self.engine is None:
            raise RuntimeError("the engine could not be loaded: the log above says why")
        if prompt_tokens:
            # A long prompt keeps the GPU busy, not the host that launches its kernels: far less noise.
            told = crew.agents[0].backstory
            each = len(self.engine.chat.tokenizer(told)["input_ids"])
            longer = replace(crew.agents[0], backstory=" ".join([told] * -(-prompt_tokens // each)))
            self.order = replace(self.order, agent=longer)
        self.on_gpu = device.kind == "gpu"
        self.prompt_ids: list[int] = []

    def agent(self) -> Timed:
        """One step of one agent through CrewAI and the adapter, as a worker runs it; its records' times."""
        from crewbench.execute.worker import run_step

        result = run_step(self.engine, self.job, self.order)
        if result.status != records.Status.OK:
            raise RuntimeError(f"the agent's step failed: {result.error}")
        (prompt,), (made,) = result.prompt_ids, result.output_ids
        if self.prompt_ids and prompt != self.prompt_ids:
            raise RuntimeError("the agent's prompt changed between two steps")
        self.prompt_ids = prompt
        return Timed(result.prefill_s + result.decode_s, made, result.prefill_s, result.decode_s)

    def call(self) -> Timed:
        """One call of the engine without CrewAI around it: cheap, as long as the agent's, timed by the same
        recorder."""
        from langchain_core.messages import HumanMessage

        told = f"{self.order.agent.backstory}\n\n{self.order.task.description}"
        done = self.engine.complete([HumanMessage(content=told)], float("inf"))
        return Timed(done.prefill_s + done.decode_s, done.output_ids, done.prefill_s, done.decode_s)

    def generate(self) -> Timed:
        """A bare `generate` on the agent's prompt ids, already on the device, and a clock around it."""
        import torch

        ids = self._tensor(self.prompt_ids)
        self._synchronize()
        began = time.perf_counter()
        with torch.inference_mode():
            made = self.engine.model.generate(
                ids["input_ids"],
                attention_mask=ids["attention_mask"],
                generation_config=self.engine.generation,
            )
        self._synchronize()
        seconds = time.perf_counter() - began
        return Timed(seconds, made[0, len(self.prompt_ids) :].tolist())

    def benchmark(self) -> Timed:
        """As optimum-benchmark 0.6.0 times text generation with its PyTorch backend, on a prompt as long.

        Random ids; CUDA events (a clock on a CPU) before `generate`, at its first logits through a logits
        processor, and after it: prefill is the first span, decode the second.
        Source: optimum_benchmark/scenarios/inference/scenario.py (TEXT_GENERATION_DEFAULT_KWARGS,
        run_per_token_text_generation_latency_tracking), trackers/latency.py
        (PerTokenLatencySessionTrackerLogitsProcessor), backends/pytorch/backend.py (generate).
        """
        import torch
        from transformers import LogitsProcessor, LogitsProcessorList

        marks: list[Any] = []

        def mark() -> None:
            if not self.on_gpu:
                marks.append(time.perf_counter())
                return
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()

        class Marker(LogitsProcessor):
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                mark()
                return scores

        def between(a: Any, b: Any) -> float:
            return a.elapsed_time(b) / 1000 if self.on_gpu else b - a

        draw = torch.Generator().manual_seed(0)
        vocabulary = self.engine.model.config.vocab_size
        random = torch.randint(0, vocabulary, (len(self.prompt_ids),), generator=draw).tolist()
        ids = self._tensor(random)
        tokens = self.job.tokens
        end = self.engine.chat.tokenizer.eos_token_id
        self._synchronize()
        with torch.inference_mode():
            mark()
            made = self.engine.model.generate(
                **ids,
                num_return_sequences=1,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                use_cache=True,
                num_beams=1,
                eos_token_id=end,
                pad_token_id=end,
                logits_processor=LogitsProcessorList([Marker()]),
            )
            mark()
        self._synchronize()
        prefill, decode = between(marks[0], marks[1]), between(marks[1], marks[-1])
        return Timed(prefill + decode, made[0, len(random) :].tolist(), prefill, decode)

    def _tensor(self, ids: list[int]) -> dict[str, Any]:
        import torch

        tensor = torch.tensor([ids], device=self.engine.devices[0])
        return {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}

    def _synchronize(self) -> None:
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()


@contextmanager
def sampling(device: Device, scratch: Path, name: str) -> Iterator[tuple[Sampler, float, dict[str, Any]]]:
    """The trials' own sampler, its zero on CLOCK_MONOTONIC, and a dict that holds `samples` and what the
    sampler said of itself once it has stopped."""
    identity = records.Identity("validity", "", 1, 1, "eager", "process", "base", 1, provenance.host())
    path, zero = scratch / f"{name}.csv", time.monotonic()
    sampler = Sampler(path, identity, [device], HZ, zero, ledger=scratch / "ledger.json")
    found: dict[str, Any] = {}
    sampler.start()
    try:
        yield sampler, zero, found
    finally:
        found.update(sampler.stop())
    found["samples_read"] = read_samples(path)


def read_samples(path: Path) -> list[Sample]:
    def number(text: str) -> float | None:
        return float(text) if text else None

    with path.open(newline="", encoding="utf-8") as file:
        return [
            Sample(float(r["t_at_s"]), *(number(r[c]) for c in ("power_w", "energy_j", "util_pct")))
            for r in csv.DictReader(file)
        ]


def switch(pid: int, on: bool) -> None:
    """Let the sampler's process go on, or stop it where it is, and wait until the kernel says so.

    Starting a new one for each pair would cost more than the pair, and leave the caches in another state."""
    os.kill(pid, signal.SIGCONT if on else signal.SIGSTOP)
    wanted = os.WCONTINUED if on else os.WSTOPPED
    seen = os.waitid(os.P_PID, pid, wanted | os.WEXITED)
    if seen.si_code not in (os.CLD_CONTINUED, os.CLD_STOPPED):
        raise RuntimeError("the sampler ended in the middle of the pairs")


def run_blocks(
    part: str, sides: Mapping[str, Callable[[], Timed]], seconds: float, least: int
) -> tuple[list[Measured], list[dict[str, Timed]]]:
    """Blocks of all sides in interleaved order for about so many seconds, at least `least` of them.

    How many is settled by a first block that is not kept, not by how the results look."""
    for _ in range(WARM_UP):
        for side in sides.values():
            side()
    # What is loaded by now is kept out of every later collection, as in a zygote: a full collection in the
    # middle of one generation takes longer than the differences looked for.
    gc.collect()
    gc.freeze()
    began = time.monotonic()
    for side in sides.values():
        side()
    block_s = time.monotonic() - began
    turns = claims.orders(list(sides), max(least, int(seconds / block_s)))
    say(f"{part}: {len(turns)} blocks of {', '.join(sides)}, about {len(turns) * block_s:.0f} s")
    rows, made = [], []
    for block, order in enumerate(turns):
        made.append({})
        for place, name in enumerate(order):
            done = sides[name]()
            rows.append(Measured(part, block, place, name, done.seconds, done.prefill_s, done.decode_s))
            made[-1][name] = done
    return rows, made


def measure_times(
    bench: Bench, device: Device, args: argparse.Namespace, scratch: Path
) -> tuple[list[Verdict], list[Measured], list[Window], dict[str, Any]]:
    """The agent, a bare generate and the benchmark's way in blocks of three, with the sampler on as in every
    trial. Its samples of the same minute are what energy is judged by."""
    with sampling(device, scratch, "times") as (_, zero, sampled):
        bench.agent()  # its prompt is what the others need
        began = time.monotonic() - zero
        sides = {"agent": bench.agent, "generate": bench.generate, "benchmark": bench.benchmark}
        rows, made = run_blocks("times", sides, args.seconds, args.pairs)
        while device.kind == "gpu" and time.monotonic() - zero - began < (claims.LEAST + 1) * WINDOW_S:
            bench.call()
        ended = time.monotonic() - zero
    raw, like = claims.pairs(rows, "agent", "generate"), claims.pairs(rows, "agent", "benchmark")
    ids = [(m["agent"].output_ids, m["generate"].output_ids) for m in made]
    verdicts = [
        claims.ratio("inference_raw", RAW, 1.0, spans(raw, "seconds")),
        claims.equal_ids("ids_raw", "output ids of those two", ids),
        claims.ratio("inference_benchmark", BENCHMARK, 3.0, spans(like, "seconds"), why_not_optimum()),
        claims.ratio("prefill_benchmark", "its prefill", None, spans(like, "prefill_s")),
        claims.ratio("decode_benchmark", "its decode", None, spans(like, "decode_s")),
    ]
    windows = claims.windows(sampled["samples_read"], began, ended, WINDOW_S)
    return [*verdicts, judge_energy(windows)], rows, windows, sampled


def spans(pairs: Iterable[tuple[Measured, Measured]], name: str) -> list[tuple[float, float]]:
    """One column of both sides of each pair."""
    return [(getattr(a, name), getattr(b, name)) for a, b in pairs]


def judge_energy(windows: Sequence[Window]) -> Verdict:
    if not windows:
        why = "no power and energy reading here: it needs a GPU"
        return Verdict("energy", Outcome.NOT_MEASURED, ENERGY, limit_pct=5.0, note=why)
    both = [(w.integrated_j, w.counter_j) for w in windows]
    whole = 100 * (sum(a for a, _ in both) / max(sum(b for _, b in both), 1e-9) - 1)
    seconds = sum(w.end_s - w.start_s for w in windows)
    note = f"windows of {WINDOW_S:g} s; all {seconds:.0f} s together {whole:+.2f} %"
    return claims.ratio("energy", ENERGY, 5.0, both, note)


def measure_sampler(
    bench: Bench, device: Device, args: argparse.Namespace, scratch: Path
) -> tuple[list[Verdict], list[Measured]]:
    """Pairs of calls with the sampler at work and stopped."""
    called: list[tuple[float, float]] = []
    with sampling(device, scratch, "sampler") as (sampler, zero, sampled):
        works = True

        def call(on: bool) -> Timed:
            nonlocal works
            if works != on:
                switch(sampler.pid, on)
                works = on
            began = time.monotonic()
            done = bench.call()
            called.append((began - zero, time.monotonic() - zero))
            return done

        sides = {"on": lambda: call(True), "off": lambda: call(False)}
        try:
            rows, _ = run_blocks("sampler", sides, args.seconds, args.pairs)
        finally:
            if not works:
                switch(sampler.pid, True)
    at = [s.at_s for s in sampled["samples_read"]]
    kept = called[-len(rows) :]  # without the calls that warmed up
    rows = [
        replace(row, samples=sum(a <= t <= b for t in at)) for row, (a, b) in zip(rows, kept, strict=True)
    ]
    return [judge_sampler(rows, [b - a for a, b in kept])], rows


def judge_sampler(rows: Sequence[Measured], seconds: Sequence[float]) -> Verdict:
    """`seconds` is how long each row's call took as a whole, in which its samples were counted."""
    rate = {}
    for side in ("on", "off"):
        of = [(r.samples, s) for r, s in zip(rows, seconds, strict=True) if r.side == side]
        rate[side] = sum(n for n, _ in of) / sum(s for _, s in of)
    note = f"on: {rate['on']:.1f} samples/s, off: {rate['off']:.1f}"
    found = claims.ratio("sampler", SAMPLER, 0.5, spans(claims.pairs(rows, "on", "off"), "seconds"), note)
    if rate["off"] > 0 or rate["on"] < HZ / 2:
        return replace(found, outcome=Outcome.NOT_MET, note=f"{note}: it was not the sampler that differed")
    return found


def why_not_optimum() -> str:
    """What the benchmark's side was, for the reader."""
    name = "optimum_benchmark"
    way = "timed as it does, by us"
    if importlib.util.find_spec(name) is None:
        return f"{way}: optimum-benchmark is not installed here"
    try:
        importlib.import_module(f"{name}.backends.pytorch.backend")
    except Exception as error:  # whatever importing it raises: the timing is done and must not be lost
        return f"{way}: optimum-benchmark {importlib.metadata.version('optimum-benchmark')} fails: {error}"
    return f"{way}, though optimum-benchmark could be imported here"


# ---- what trials left behind


def read_trials(place: Path) -> tuple[list[Mapping[str, str]], list[Answer]]:
    """Rows of rounds.csv of every trial below `place` that is done, and the answers of those of ENGINE.
    ValueError for a file that is not as its trial.json says, or where there is none."""
    rounds: list[Mapping[str, str]] = []
    answers: list[Answer] = []
    for path in sorted(place.rglob("trial.json")):
        trial = json.loads(path.read_text(encoding="utf-8"))
        content = {}
        for name in ("rounds.csv", "outputs.jsonl"):
            content[name] = (path.parent / name).read_bytes()
            if hashlib.sha256(content[name]).hexdigest() != trial["files"][name]:
                raise ValueError(f"{path.parent / name} was altered: its sha256 is not trial.json's")
        rounds += csv.DictReader(content["rounds.csv"].decode().splitlines())
        if trial["identity"]["engine"] != ENGINE:
            continue
        spec = trial["spec"]
        work = "|".join(
            str(x)
            for x in (
                trial["model"]["sha256"],
                spec["dtype"],
                trial["identity"]["engine"],
                spec["output_length"],
                spec["output_tokens"],
            )
        )
        for line in content["outputs.jsonl"].decode().splitlines():
            output = json.loads(line)
            if output["status"] != records.Status.OK:
                continue
            for prompt, made in zip(output["prompt_ids"], output["output_ids"], strict=True):
                answers.append(
                    Answer(
                        work=work,
                        trial_id=output["trial_id"],
                        mode=output["mode"],
                        attempt=output["attempt"],
                        round=output["round"],
                        agent=output["agent"],
                        prompt_ids=tuple(prompt),
                        output_ids=tuple(made),
                    )
                )
    if not rounds:
        raise ValueError(f"there is no trial.json below {place}: name a directory of trials")
    return rounds, answers


def judge_trials(place: Path) -> tuple[list[Verdict], list[Explained], list[Prompt]]:
    rounds, answers = read_trials(place)
    found = claims.prompts(answers)
    explained = [
        Explained(
            r["trial_id"],
            int(r["round"]),
            int(r["attempt"]),
            r["status"],
            float(r["makespan_s"]),
            claims.unexplained_pct(r),
        )
        for r in rounds
        if float(r["makespan_s"]) > 0
    ]
    verdicts = [
        claims.stages("stages", STAGES, 2.0, rounds),
        claims.same_in_modes("ids_modes", MODES, found),
    ]
    return verdicts, explained, found


# ---- the run


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write(path: Path, row_type: type, rows: Iterable[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [f.name for f in fields(row_type)]
        writer.writerow(names)
        writer.writerows([records.cell(getattr(row, n)) for n in names] for row in rows)


def write_environment(path: Path, facts: Mapping[str, Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["key", "value"])
        for key, value in facts.items():
            inner = value.items() if isinstance(value, Mapping) else [("", value)]
            writer.writerows([f"{key} {name}".strip(), records.cell(x)] for name, x in inner)


def power_reading(device: Device) -> str:
    """Which of NVML's power readings the sampler gets from this card (devices/nvml.py asks alike)."""
    if device.kind != "gpu":
        return ""
    import pynvml as nvml

    nvml.nvmlInit()
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(device.uuid)
        (value,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        return "instant" if value.nvmlReturn == nvml.NVML_SUCCESS else "average"
    except nvml.NVMLError:
        return "average"
    finally:
        nvml.nvmlShutdown()


@contextmanager
def judging(verdicts: list[Verdict], claim: str, what: str) -> Iterator[None]:
    """A part that breaks is a claim that is not met: what the others measured on dear time is kept."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        verdicts.append(
            Verdict(claim, Outcome.NOT_MET, what, note=f"failed: {type(error).__name__}: {error}")
        )


def body(args: argparse.Namespace, scratch: Path) -> int:
    from crewbench import crews

    os.environ.update(crews.OFFLINE)
    os.environ["CREWBENCH_LEASE_DIR"] = str(directory())
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    args.out.mkdir(parents=True, exist_ok=True)
    verdicts = measure(args, scratch) if args.model is not None else []
    if args.trials is None:
        why = "no --trials to look at"
        verdicts.append(Verdict("stages", Outcome.NOT_MEASURED, STAGES, limit_pct=2.0, note=why))
        verdicts.append(Verdict("ids_modes", Outcome.NOT_MEASURED, MODES, note=why))
    else:
        with judging(verdicts, "stages", STAGES):
            found, explained, answered = judge_trials(args.trials)
            write(args.out / "rounds.csv", Explained, explained)
            write(args.out / "prompts.csv", Prompt, answered)
            verdicts += found
    write(args.out / "verdicts.csv", Verdict, verdicts)
    print(claims.table(verdicts))
    return int(any(v.outcome == Outcome.NOT_MET for v in verdicts))


def measure(args: argparse.Namespace, scratch: Path) -> list[Verdict]:
    """What is judged on one device with the model, and the files of it."""
    verdicts: list[Verdict] = []
    measured: list[Measured] = []
    devices = list_devices(args.device, 1, None if args.device == "gpu" else SLOT_MIB)
    with lease(devices, 1, holder="validity") as leased:
        device = leased.devices[0]
        before, began = provenance.pressure(), time.monotonic()
        bench = Bench(args.model, device, args.tokens, args.threads, scratch / "crewai", args.prompt_tokens)
        say(f"imported and loaded on {device.name} in {time.monotonic() - began:.0f} s")
        sampled: dict[str, Any] = {}
        with judging(verdicts, "inference_raw", RAW):
            found, rows, windows, sampled = measure_times(bench, device, args, scratch)
            measured += rows
            write(args.out / "measured.csv", Measured, measured)
            write(args.out / "energy.csv", Window, windows)
            verdicts += found
        with judging(verdicts, "sampler", SAMPLER):
            found, rows = measure_sampler(bench, device, args, scratch)
            measured += rows
            write(args.out / "measured.csv", Measured, measured)
            verdicts += found
        facts = {
            **provenance.environment(ROOT),
            "host": provenance.host(),
            "device": {"name": device.name, "uuid": device.uuid, "memory_mib": device.memory_mib},
            "power_reading": power_reading(device),
            "model": {"id": manifest.load(args.model).model_id, "sha256": manifest.load(args.model).sha256},
            "tokens": {"prompt": len(bench.prompt_ids), "output": args.tokens},
            "threads": args.threads,
            "sampler": {"hz": HZ, **{k: sampled.get(k) for k in ("samples", "late", "errors", "foreign")}},
            "pressure": provenance.pressure_since(before),
            "shared_host": leased.shared_host,
            "seconds": time.monotonic() - began,
        }
        write_environment(args.out / "environment.csv", facts)
    return verdicts


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too few: {least} or more are needed")
        return value

    return number


def main() -> int:
    from crewbench.execute.guardian import supervised

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="a directory that scripts/model.py made; without one only --trials are judged",
    )
    parser.add_argument("--out", type=Path, required=True, help="the directory for the CSV files")
    parser.add_argument("--trials", type=Path, help="a directory with trials, for what is judged on them")
    parser.add_argument("--device", choices=("auto", "gpu", "slot"), default="gpu")
    parser.add_argument("--tokens", type=at_least(2), default=16, help="output tokens of a generation (16)")
    parser.add_argument(
        "--prompt-tokens",
        type=at_least(1),
        default=0,
        help="make the agent's prompt about this long, so that the GPU is what is waited for (as it is)",
    )
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads of torch (1)")
    parser.add_argument(
        "--pairs", type=at_least(claims.LEAST), default=claims.LEAST, help="the fewest pairs (10)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="for each of the two measured parts; more pairs fill it (60)",
    )
    args = parser.parse_args()
    if args.model is None and args.trials is None:
        parser.error("give --model to measure, --trials to judge trials that were run, or both")
    scratch = Path(tempfile.mkdtemp(prefix="crewbench-"))
    return supervised(lambda: body(args, scratch), scratch)


if __name__ == "__main__":
    sys.exit(main())
