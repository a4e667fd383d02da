"""Trials made up on disk, for tests of what reads trials: every mode, in the data contract's own files.

A Deployment is walked on a virtual clock with fixed costs, so the rows hang together as real ones do
(stages add up, a failed attempt precedes the one that fits), and no process or model is needed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from crewbench import modes, quality
from crewbench.deployment import Deployment, Step, Worker
from crewbench.records import (
    FILES,
    STAGES,
    AgentRow,
    GpuRow,
    Identity,
    OomRow,
    RoundRow,
    ServerRow,
    Status,
    WorkerRow,
    write_csv,
)
from crewbench.trial import AgentSpec, Cell, Spec, TaskSpec

ROLES = (
    "Product Manager",
    "System Architect",
    "AI Researcher",
    "Data Engineer",
    "Backend Developer",
    "Frontend Developer",
    "Security Specialist",
    "DevOps Engineer",
)
TASKS = ("explain", "contribute", "plan", "work", "summarise")


@dataclass
class Costs:
    """Seconds and MiB of the made-up machine."""

    spawn_s: float = 0.25
    import_s: dict[str, float] = field(default_factory=lambda: {"disk": 6.0, "process": 6.0, "zygote": 0.0})
    context_s: float = 0.05
    load_s: dict[str, float] = field(default_factory=lambda: {"disk": 2.4, "process": 0.6, "zygote": 0.6})
    prefill_s: float = 0.12
    token_s: float = 0.02
    framework_s: float = 0.06
    bare_s: float | None = None  # what a step takes outside the engine without the framework; None: no replay
    stop_s: float = 0.1
    copy_mib: float = 200.0
    budget_mib: float = 640.0
    tokens: int = 48
    hz: float = 5.0
    gpu: bool = False
    bandwidth_gb_s: float | None = None
    decode_bytes: int = 50_000_000
    compile_s: float = 0.0
    compile_cache: str = "none"
    util_pct: float | None = 100.0  # of a device at work

    def uuid(self, device: int) -> str:
        return f"{'GPU' if self.gpu else 'slot'}-{device}"

    @property
    def record(self) -> dict:
        """What trial.json says of this machine."""
        rate = self.bandwidth_gb_s
        copied = {
            "min": rate and 0.99 * rate,
            "median": rate,
            "max": rate and 1.01 * rate,
            "copies": 15 if rate else 0,
            "copy_mib": 1024 if rate else 0,
            "why": "" if rate else "a CPU slot has no memory of its own",
        }
        filled = self.compile_cache == "filled"
        return {
            "simulated_budget": not self.gpu,
            "model": {"decode_bytes": self.decode_bytes},
            "bandwidth_gb_s": {self.uuid(i): copied for i in range(8)},
            "compile_cache": {"state": self.compile_cache, "files": 120 * filled, "mib": 3.5 * filled},
        }


@dataclass
class _Walk:
    """What one attempt left behind."""

    agents: list[AgentRow] = field(default_factory=list)
    workers: list[WorkerRow] = field(default_factory=list)
    rounds: list[RoundRow] = field(default_factory=list)
    ooms: list[OomRow] = field(default_factory=list)
    replays: list[AgentRow] = field(default_factory=list)
    held: list[tuple[int, float, float]] = field(default_factory=list)  # device, from, to: a loaded copy
    end_s: float = 0.0


def spec(cell: Cell, repeat: int, warm_rounds: int = 2, costs: Costs | None = None) -> Spec:
    costs = costs or Costs()
    return Spec(
        cell=cell,
        repeat=repeat,
        warm_rounds=warm_rounds,
        exclusive=True,
        model_dir="results/models/tiny",
        dtype="float32",
        output_length="fixed",
        output_tokens=costs.tokens,
        device_kind="gpu" if costs.gpu else "slot",
        device_count=cell.gpus,
        memory_mib=int(costs.budget_mib),
        sampler_hz=costs.hz,
        load_timeout_s=60.0,
        step_timeout_s=60.0,
        threads_per_worker=1,
        agents=tuple(
            AgentSpec(role.lower().replace(" ", "_"), role, f"Be a good {role}", "Years of it")
            for role in (ROLES[i % len(ROLES)] for i in range(cell.agents))
        ),
        tasks=tuple(TaskSpec(name, f"{name} it", "Text") for name in TASKS),
        replay=costs.bare_s is not None,
    )


def identity(cell: Cell, repeat: int, host: str = "box") -> Identity:
    return Identity(
        cell.trial_id(repeat),
        cell.mode,
        cell.gpus,
        cell.agents,
        cell.engine,
        cell.start,
        cell.variant,
        repeat,
        host,
    )


def make_trial(
    root: Path,
    cell: Cell,
    repeat: int,
    *,
    warm_rounds: int = 2,
    costs: Costs | None = None,
    fail: tuple[int, str, Status, str] | None = None,
    taints: Iterable[str] = (),
    host: str = "box",
    order: int = 0,
    texts: dict[str, str] | None = None,
    host_of: Callable[[Any], str | None] = lambda row: None,
) -> dict[str, str]:
    """Writes one trial under `root`, gives its line of the manifest. `fail`: (round, step, status, error)."""
    costs = costs or Costs()
    what, who = spec(cell, repeat, warm_rounds, costs), identity(cell, repeat, host)
    rng = random.Random(f"{who.trial_id}{host}")
    clock, walks = 0.1, []
    for number, deployment in enumerate(modes.get(cell.mode).attempts(cell), start=1):
        walk = _attempt(what, deployment, number, clock, warm_rounds, costs, rng, fail)
        walks.append(walk)
        clock = walk.end_s + 0.2
        if walk.rounds[0].status != Status.OOM:
            break
    rows = {
        "agents.csv": [r for w in walks for r in w.agents],
        "workers.csv": [r for w in walks for r in w.workers],
        "rounds.csv": [r for w in walks for r in w.rounds],
        "ooms.csv": [r for w in walks for r in w.ooms],
        "replays.csv": [r for w in walks for r in w.replays],
        "servers.csv": list(_readings(walks[-1])),
        "gpu.csv": list(_samples(cell, walks, clock, costs)),
    }
    more = costs.record
    return write_trial(
        root, what, who, rows, taints=taints, order=order, texts=texts, more=more, host_of=host_of
    )


def write_trial(
    root: Path,
    what: Spec,
    who: Identity,
    rows: dict[str, list],
    *,
    taints: Iterable[str] = (),
    order: int = 0,
    texts: dict[str, str] | None = None,
    more: dict | None = None,
    host_of: Callable[[Any], str | None] = lambda row: None,
) -> dict[str, str]:
    """Writes a trial's files from its rows, trial.json last, and gives its line of the manifest.

    `texts` are what agents said; others say something harmless. `more` is what trial.json says besides.
    `host_of`: which host a row was on, None for the trial's own."""
    here = root / who.trial_id / what.spec8
    here.mkdir(parents=True)
    for name, row_type in FILES.items():
        write_csv(here / name, row_type, who, rows.get(name, []), host_of)
    with open(here / "outputs.jsonl", "w", encoding="utf-8") as out:
        for row in rows.get("agents.csv", []):
            if row.status == Status.OK:
                text = (texts or {}).get(row.agent, f"token soup of {row.agent}")
                said = {"round": row.round, "attempt": row.attempt, "step": row.step, "agent": row.agent}
                ids = {"prompt_ids": [1, 2], "output_ids": [3]}
                out.write(json.dumps({"trial_id": who.trial_id, **said, "text": text, **ids}) + "\n")
    rounds = rows["rounds.csv"]
    last = max((r.attempt for r in rounds), default=0)
    record = {
        "trial_id": who.trial_id,
        "spec8": what.spec8,
        "spec": asdict(what),
        "identity": asdict(who),
        "workload": list(modes.get(who.mode).attempts(what.cell))[-1].workload,
        "status": Status.worst(r.status for r in rounds if r.attempt == last),
        "anchor": {"host": who.host, "zero_wall_s": 1.0e9 + 60 * order, "zero_monotonic_s": 60.0 * order},
        "finished_wall_s": 1.0e9 + 60 * order + 45,
        "lease_waited_s": 0.5,
        "environment": {
            "python": "3.11.2",
            "packages": {"torch": "2.13.0", "crewai": "1.15.30"},
            "cpu": "Two slow cores",
            "cores": 2,
            "commit": "0" * 40,
            "modified": False,
        },
        "devices": [
            {
                "uuid": f"{'GPU' if what.device_kind == 'gpu' else 'slot'}-{i}",
                "index": i,
                "kind": what.device_kind,
                "name": "Made GPU" if what.device_kind == "gpu" else "CPU slot",
                "memory_mib": what.memory_mib,
            }
            for i in range(what.cell.gpus)
        ],
        "simulated_budget": True,
        "random_weights": True,
        "zygote_s": 5.5 if who.start == "zygote" else None,
        "taints": list(taints),
        "sampler": {"samples": 100, "late": 1, "errors": 0},
        "pressure": {"cpu_some_s": 0.4, "memory_some_s": 0.0},
        "files": {n: hashlib.sha256((here / n).read_bytes()).hexdigest() for n in (*FILES, "outputs.jsonl")},
        **(more or {}),
    }
    (here / "trial.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    line = {"trial_id": who.trial_id, "spec8": what.spec8, "dir": str(here)}
    return {**line, "check_id": f"{who.engine}__d1"}


def given_up(root: Path, repeat: int = 1, hosts: tuple[str, str] = ("box", "box")) -> dict[str, str]:
    """A search that gave up an attempt in a warm round, on `hosts` of its two attempts. On one device rounds
    of 10, 10 and 20 s, of which the framework took 9 each until memory ran out; on two devices three rounds
    of 10 s without a framework. The devices are busy in the second attempt's warm rounds alone."""
    cell = Cell("auto_expand", 2, 2, "eager", "zygote")
    oom, ok = Status.OOM, Status.OK
    rounds = [
        RoundRow(number, "warm" if number else "cold", attempt, attempt, a, b, b - a, status=status,
                 framework_s=framework, decode_s=b - a - framework)
        for number, attempt, a, b, framework, status in (
            (0, 1, 0, 10, 9, ok), (1, 1, 10, 20, 9, ok), (2, 1, 20, 40, 0, oom),
            (0, 2, 40, 50, 0, ok), (1, 2, 50, 60, 0, ok), (2, 2, 60, 70, 0, ok),
        )
    ]  # fmt: skip
    agents = [
        AgentRow(r.round, r.phase, r.attempt, f"agent{i}", f"agent{i}", f"worker{i}", 0, r.status,
                 r.started_at_s, r.started_at_s, r.ended_at_s, 0.0, 1.0, 8.0, 0.0, 1.0, 5, 5, 1)
        for r in rounds
        for i in (0, 1)
    ]  # fmt: skip
    workers = [
        WorkerRow(f"worker{i}", 0, attempt, "process", spawned_at_s=0.0, ready_at_s=0.0, stopped_at_s=70.0,
                  device_uuid=f"slot-{d}", device_index=d, predicted_mib=500.0,
                  allocated_peak_mib=400.0 if attempt == 2 else None)
        for attempt, i, d in ((1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 1))
    ]  # fmt: skip
    refused = OomRow(2, "warm", 1, "worker1", 0, "agent1", None, "slot-0", "generate", 100.0, 20.0,
                     held_by="worker0: 500 MiB")  # fmt: skip
    busy = [
        GpuRow(t, f"slot-{d}", d, util_pct=100.0 if t >= 50 else 0.0, used_mib=500.0, free_mib=140.0)
        for t in (0.0, 20.0, 40.0, 49.0, 50.0, 60.0, 70.0)
        for d in (0, 1)
    ]
    files = {"agents": agents, "workers": workers, "rounds": rounds, "ooms": [refused], "gpu": busy}
    rows = {f"{name}.csv": of for name, of in files.items()}

    def host_of(row: Any) -> str | None:
        return hosts[0] if getattr(row, "attempt", None) == 1 else None

    return write_trial(
        root, spec(cell, repeat), identity(cell, repeat, hosts[1]), rows, order=repeat, host_of=host_of
    )


def make_results(
    root: Path, cells: Iterable[Cell], repeats: int = 3, skipped: Iterable[dict] = (), **kw
) -> Path:
    """A results directory with its manifest, trials interleaved by repeat. Gives the manifest's path."""
    lines, order = [], 0
    for repeat in range(1, repeats + 1):
        for cell in cells:
            lines.append(make_trial(root / "trials", cell, repeat, order=order, **kw))
            order += 1
    return write_manifest(root, lines, skipped)


def make_check(root: Path, engine: str, unseen: str = "", error: str = "", **numbers: float | None) -> dict:
    """Writes the check of an engine in bfloat16 under `root` and gives its line of the manifest. Its logits
    are as far off as a plain forward's, 0.04, unless `numbers` say else."""
    made = {
        **{"prompts": 3, "tokens": 96, "logit_std": 1.5, "gap": 0.05, "own_gap": 0.0, "top1_share": 0.95},
        **{"logit_error": 0.04, "logit_max": 0.2, "logit_mean": 0.02, "logprob_error": 0.03},
        **{"plain_logit_error": 0.04, "plain_logit_max": 0.2, "plain_logprob_error": 0.03},
        "broken_tokens": 0,
        **numbers,
    }
    told = {"engine": engine, "options": {}, "devices": 1, "dtype": "bfloat16"}
    line = {"check_id": f"{engine}__d1", "spec8": "0" * 8, "dir": str(root / engine), **told}
    record = {
        **{"check_id": line["check_id"], "spec8": line["spec8"], "check": told, "host": "box"},
        **{"device_name": "CPU slot", "unseen": unseen, "error": error},
        "status": Status.ERROR if error else Status.OK,
        "numbers": None if unseen or error else made,
    }
    quality.write(record, Path(line["dir"]))
    return line


def write_manifest(
    root: Path,
    lines: list[dict[str, str]],
    skipped: Iterable[dict] = (),
    checks: Iterable[dict] = (),
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    manifest = {
        "config": {"name": "made", "repeats": 3, **config},
        "model": {"kind": "synthetic", "shape": "tiny", "parameters": 1_000_000, "sha256": "a" * 64},
        "trials": lines,
        "skipped": list(skipped),
        "checks": list(checks),
    }
    root.mkdir(parents=True, exist_ok=True)
    path = root / "matrix.json"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return path


def study_cells(agents: int = 8, start: str = "zygote") -> list[Cell]:
    """One small study with every mode, two GPU counts of `parallel`, and another start state."""
    one = {"agents": agents, "engine": "eager", "start": start}
    return [
        Cell("parallel", 8, **one),
        Cell("parallel", 4, **one),
        Cell("auto_expand", 8, **one),
        Cell("sequential", 1, **one),
        Cell("shared", 1, **one),
        Cell("cooperative", 1, **one),
        Cell("hierarchical", 4, **one),
        Cell("parallel", 8, **{**one, "start": "process"}),
    ]


def gpu_study(root: Path, repeats: int = 3) -> list[dict[str, str]]:
    """Trials on GPUs whose memory copies at 4,300 GB/s: every start state of an engine that compiles, first
    with nothing compiled on disk, and of one that does not. Limit: 4.3e12 / 14.5e9 = 297 tokens/s."""
    lines, gpu = [], {"gpu": True, "bandwidth_gb_s": 4300.0, "decode_bytes": 14_500_000_000}
    slow, fast = {"token_s": 0.025, **gpu}, {"token_s": 0.0075, **gpu}
    for repeat in range(1, repeats + 1):
        for start in ("disk", "process", "zygote"):
            eager = [Cell(m, g, 8, "eager", start) for m, g in (("parallel", 8), ("parallel", 4))]
            eager += [Cell("sequential", 1, 8, "eager", start)] if start == "zygote" else []
            lines += [make_trial(root, cell, repeat, costs=Costs(**slow), warm_rounds=1) for cell in eager]
            empty = start == "disk" or (start == "process" and repeat == 1)
            found = (
                {"compile_cache": "empty", "compile_s": 41.0}
                if empty
                else {"compile_cache": "filled", "compile_s": 9.0}
            )
            cell = Cell("parallel", 8, 8, "compiled", start)
            lines.append(make_trial(root, cell, repeat, costs=Costs(**fast, **found), warm_rounds=1))
    return lines


def client_study(root: Path, repeats: int = 3) -> list[dict[str, str]]:
    """Trials with replays: an agent alone, three agents that share a worker, a device, a host or nothing, a
    server, one mode whose replays were off, and a zygote."""
    lines, bare = [], {"bare_s": 0.004}
    for repeat in range(1, repeats + 1):
        for cell in (
            Cell("parallel", 1, 1, "eager", "process"),
            Cell("parallel", 1, 3, "eager", "process"),
            Cell("parallel", 3, 3, "eager", "process"),
            Cell("sequential", 1, 3, "eager", "process"),
            Cell("shared", 1, 3, "eager", "process"),
            Cell("shared", 1, 3, "eager", "zygote"),
        ):
            lines.append(make_trial(root, cell, repeat, costs=Costs(**bare), order=len(lines)))
        fast = Costs(token_s=0.002, framework_s=0.006, **bare)
        served = Cell("served", 1, 3, "vllm", "process")
        lines.append(make_trial(root, served, repeat, costs=fast, order=len(lines)))
        lines.append(
            make_trial(root, Cell("cooperative", 1, 3, "eager", "process"), repeat, order=len(lines))
        )
    return lines


def server_study(root: Path, repeats: int = 2) -> list[dict[str, str]]:
    """Trials with the longest names there are: replays of servers of two engines on a GPU of 143,771 MiB,
    with code compiled on disk and client threads, beside an engine without a server."""
    gpu = {"gpu": True, "budget_mib": 143_771.0, "copy_mib": 132_621.0, "bare_s": 0.004, "hz": 1.0}
    filled, empty = ({"compile_cache": state, "compile_s": 20.0} for state in ("filled", "empty"))
    cells = (
        (Cell("served", 1, 8, "vllm", "process"), {"token_s": 0.002, **filled}),
        (Cell("served", 1, 8, "vllm", "process", "threads"), {"token_s": 0.002, **empty}),
        (Cell("served", 1, 8, "transformers-serve", "process"), {}),
        (Cell("sequential", 1, 8, "eager", "zygote"), {}),
    )
    return [
        make_trial(root, cell, repeat, costs=Costs(**gpu, **costs), warm_rounds=2)
        for repeat in range(1, repeats + 1)
        for cell, costs in cells
    ]


def _attempt(what, deployment, number, clock, warm_rounds, costs, rng, fail) -> _Walk:
    walk = _Walk()
    if deployment.lifetime == "step":
        _renewed_round(walk, what, deployment, number, clock, costs, rng, fail)
        workers = {deployment.workers[0].name: (len(deployment.steps) - 1, walk.end_s)}
    else:
        setups, oom_at = {}, None
        held = dict.fromkeys(range(what.cell.gpus), 0)
        for worker in deployment.workers:
            row = _worker_row(what, worker, 0, number, clock, costs, rng)
            held[worker.devices[0]] += 1
            if held[worker.devices[0]] * costs.copy_mib > costs.budget_mib:
                row.status, row.error = (
                    Status.OOM,
                    f"slot budget of {costs.budget_mib:g} MiB (simulated) is full",
                )
                walk.ooms.append(_oom_row(row, walk.workers, costs))
                oom_at = min(row.ready_at_s, oom_at or row.ready_at_s)
                row.ready_at_s = None
            walk.workers.append(row)
            setups[worker.name] = row
        if oom_at is not None:
            _out_of_memory(walk, what, deployment, number, clock, oom_at, costs)
            return walk
        workers = {name: (0, row.ready_at_s) for name, row in setups.items()}
        _round(walk, what, deployment, number, 0, clock, workers, walk.workers, costs, rng, fail)
    for rnd in range(1, warm_rounds + 1):
        start = walk.end_s + 0.01
        ready = {name: (life, start) for name, (life, _) in workers.items()}
        _round(walk, what, deployment, number, rnd, start, ready, [], costs, rng, fail)
    for rnd in range(1, warm_rounds + 1) if costs.bare_s is not None else ():
        again, start, bare = _Walk(), walk.end_s + 0.01, replace(costs, framework_s=costs.bare_s)
        ready = {name: (life, start) for name, (life, _) in workers.items()}
        _round(again, what, deployment, number, rnd, start, ready, [], bare, rng, None)
        walk.replays += (replace(row, phase="replay") for row in again.agents)
        walk.end_s = again.end_s
    for row in walk.workers:
        if row.stopped_at_s is None:
            row.stop_s, row.stopped_at_s = costs.stop_s, walk.end_s + costs.stop_s
            walk.held.append((row.device_index, row.ready_at_s, row.stopped_at_s))
    walk.end_s += costs.stop_s
    return walk


def _worker_row(
    what: Spec, worker: Worker, life: int, number: int, clock: float, costs: Costs, rng
) -> WorkerRow:
    cell = what.cell
    parts = (costs.spawn_s, costs.import_s[cell.start], costs.context_s, costs.load_s[cell.start])
    spawn, imports, context, load = (p * rng.uniform(0.95, 1.05) for p in parts)
    compiling = costs.compile_s * rng.uniform(0.95, 1.05) if costs.compile_s else 0.0
    device = worker.devices[0]
    return WorkerRow(
        worker.name,
        life,
        number,
        worker.runner,
        pid=4000 + 10 * int("".join(filter(str.isdigit, worker.name)) or 0) + life,
        device_uuid=costs.uuid(device),
        device_index=device,
        spawned_at_s=clock,
        spawn_s=spawn,
        import_s=imports,
        context_s=context,
        load_s=load,
        compile_s=compiling,
        ready_at_s=clock + spawn + imports + context + load + compiling,
        cached_share=1.0,
        allocated_peak_mib=costs.copy_mib,
        predicted_mib=costs.copy_mib,
    )


def _oom_row(row: WorkerRow, before: list[WorkerRow], costs: Costs) -> OomRow:
    """The refusal of a copy on a device that earlier ones have filled."""
    others = [w for w in before if w.device_uuid == row.device_uuid and w.status == Status.OK]
    held = {w.pid: costs.copy_mib for w in others}
    return OomRow(
        0,
        "cold",
        row.attempt,
        row.worker,
        row.worker_life,
        "",
        row.pid,
        row.device_uuid,
        "load",
        requested_mib=costs.copy_mib,
        free_mib=costs.budget_mib - sum(held.values()),
        reserved_mib=0.0,
        others_mib=sum(held.values()),
        holders=json.dumps(held),
        held_by="; ".join(f"{w.worker}: {costs.copy_mib:.1f} MiB" for w in others),
        predicted_mib=costs.copy_mib,
        simulated=True,
    )


def _out_of_memory(walk, what, deployment, number, clock, oom_at, costs) -> None:
    end = oom_at + costs.stop_s
    for row in walk.workers:
        if row.status == Status.OK:
            walk.held.append((row.device_index, row.spawned_at_s + row.spawn_s, end))
        row.stop_s, row.stopped_at_s = costs.stop_s, end
    lost = {row.worker for row in walk.workers if row.status == Status.OOM}
    for step in deployment.steps:
        oom = step.worker in lost
        walk.agents.append(
            AgentRow(
                0,
                "cold",
                number,
                step.name,
                what.agents[step.agent].name,
                step.workers[0],
                0,
                Status.OOM if oom else Status.CANCELLED,
                error="slot budget (simulated) is full" if oom else "",
            )
        )
    parts = _setup(max(walk.workers, key=lambda r: r.status == Status.OOM))
    _add_round(walk, 0, "cold", number, deployment, clock, end, {**parts, "stop": costs.stop_s}, Status.OOM)
    walk.end_s = end


def _setup(row: WorkerRow) -> dict[str, float]:
    return {s: getattr(row, f"{s}_s") for s in ("spawn", "import", "context", "load", "compile")}


def _step_row(
    what, step: Step, worker: str, life, number, rnd, queued, start, crowd, costs, rng, fail
) -> AgentRow:
    prefill = costs.prefill_s * (1 + 0.1 * len(step.after)) * crowd * rng.uniform(0.97, 1.03)
    decode = costs.token_s * (costs.tokens - 1) * crowd * rng.uniform(0.97, 1.03)
    row = AgentRow(
        rnd,
        "warm" if rnd else "cold",
        number,
        step.name,
        what.agents[step.agent].name,
        worker,
        life,
        Status.OK,
        queued_at_s=queued,
        started_at_s=start,
        ended_at_s=start + prefill + decode + costs.framework_s,
        queue_s=start - queued,
        prefill_s=prefill,
        decode_s=decode,
        framework_s=costs.framework_s,
        ttft_s=start - queued + prefill,
        prompt_tokens=180 + 48 * len(step.after),
        output_tokens=costs.tokens,
        llm_calls=1,
        task_tokens=100,
    )
    if fail and fail[0] == rnd and fail[1] == step.name:
        row.status, row.error = fail[2], fail[3]
        row.decode_s = row.output_tokens = None
        row.framework_s = None
    return row


def _renewed_round(walk, what, deployment, number, clock, costs, rng, fail) -> None:
    """Round 0 of lifetime "step": each step loads its own copy, one after another."""
    worker, begin, at, parts = deployment.workers[0], clock, clock, dict.fromkeys(STAGES, 0.0)
    for life, step in enumerate(deployment.steps):
        row = _worker_row(what, worker, life, number, at, costs, rng)
        walk.workers.append(row)
        done = _step_row(
            what, step, worker.name, life, number, 0, begin, row.ready_at_s, 1.0, costs, rng, fail
        )
        walk.agents.append(done)
        at = done.ended_at_s
        for stage, seconds in _setup(row).items():
            parts[stage] += seconds
        for stage in ("prefill", "decode", "framework"):
            parts[stage] += getattr(done, f"{stage}_s") or 0.0
        if life + 1 < len(deployment.steps):
            at += costs.stop_s
            parts["stop"] += costs.stop_s
            row.stop_s, row.stopped_at_s = costs.stop_s, at
            walk.held.append((row.device_index, row.ready_at_s, at))
    status = Status.worst(r.status for r in walk.agents)
    _add_round(walk, 0, "cold", number, deployment, begin, at, parts, status)
    walk.end_s = at


def _round(walk, what, deployment: Deployment, number, rnd, clock, workers, setups, costs, rng, fail) -> None:
    """One pass over the steps, each in the first free place of its worker; agents there slow each other."""
    free = {w.name: [workers[w.name][1]] * w.concurrency for w in deployment.workers}
    done: dict[str, AgentRow] = {}
    before: dict[str, str | None] = {}
    for step in deployment.steps:
        name = min(step.workers, key=lambda w: min(free[w]))
        ready = max((done[a].ended_at_s for a in step.after), default=clock)
        place = min(range(len(free[name])), key=free[name].__getitem__)
        start = max(ready, free[name][place])
        peers = sum(1 for s in deployment.steps if name in s.workers and s.after == step.after)
        crowd = 1 + 0.7 * (min(peers, deployment.worker(name).concurrency) - 1)
        row = _step_row(
            what, step, name, workers[name][0], number, rnd, ready, start, crowd, costs, rng, fail
        )
        done[step.name] = row
        before[step.name] = max(
            (s for s in done if s != step.name and done[s].ended_at_s <= start),
            default=None,
            key=lambda s: done[s].ended_at_s,
        )
        free[name][place] = row.ended_at_s
        walk.agents.append(row)
    end = max(r.ended_at_s for r in done.values())
    parts = dict.fromkeys(STAGES, 0.0)
    at: str | None = max(done, key=lambda s: done[s].ended_at_s)
    while at is not None:  # back along what each step waited for
        row = done[at]
        for stage in ("prefill", "decode", "framework"):
            parts[stage] += getattr(row, f"{stage}_s") or 0.0
        if before[at] is None and setups:
            parts.update(_setup(next(r for r in setups if r.worker == row.worker)))
        at = before[at]
    status = Status.worst(r.status for r in done.values())
    _add_round(walk, rnd, "warm" if rnd else "cold", number, deployment, clock, end, parts, status)
    walk.end_s = end


def _add_round(walk, rnd, phase, number, deployment, begin, end, parts, status) -> None:
    parts = {s: parts.get(s, 0.0) for s in STAGES if s != "idle"}
    idle = max(0.0, end - begin - sum(parts.values()))
    walk.rounds.append(
        RoundRow(
            rnd,
            phase,
            number,
            len(deployment.devices),
            begin,
            end,
            end - begin,
            **{f"{s}_s": v for s, v in parts.items()},
            idle_s=idle,
            status=status,
        )
    )


def _readings(walk: _Walk) -> Iterable[ServerRow]:
    """A server's metrics twice a second: half of what it is asked for again it still has."""
    for worker in walk.workers:
        if worker.runner != "server" or worker.ready_at_s is None:
            continue
        for tick in range(int(2 * (walk.end_s - worker.ready_at_s)) + 1):
            t = worker.ready_at_s + tick / 2
            steps = [a for a in (*walk.agents, *walk.replays) if a.started_at_s <= t]
            at_work = sum(1 for a in steps if a.ended_at_s > t)
            yield ServerRow(
                t,
                worker.worker,
                worker.worker_life,
                worker.attempt,
                running=at_work,
                waiting=0.0,
                kv_used_share=0.01 * at_work,
                preemptions=0.0,
                prefix_queries=180.0 * len(steps),
                prefix_hits=90.0 * len(steps),
                prompt_tokens=180.0 * len(steps),
                output_tokens=48.0 * len(steps),
            )


def _samples(cell: Cell, walks: list[_Walk], end: float, costs: Costs) -> Iterable[GpuRow]:
    held = [h for w in walks for h in w.held]
    device_of = {(r.attempt, r.worker): r.device_index for w in walks for r in w.workers}
    busy = [
        (device_of[r.attempt, r.worker], r.started_at_s, r.ended_at_s)
        for w in walks
        for r in w.agents
        if r.started_at_s is not None
    ]
    for tick in range(int(end * costs.hz) + 1):
        t = tick / costs.hz
        for device in range(cell.gpus):
            used = costs.copy_mib * sum(1 for d, a, b in held if d == device and a <= t < b)
            work = sum(1 for d, a, b in busy if d == device and a <= t < b)
            yield GpuRow(
                t,
                costs.uuid(device),
                device,
                util_pct=None if costs.util_pct is None else costs.util_pct * min(work, 1),
                used_mib=used,
                free_mib=costs.budget_mib - used,
                ballast_mib=0.0,
            )
