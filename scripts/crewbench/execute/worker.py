"""What runs inside a worker process: imports, loads one copy of the model, then runs steps as told.

It speaks over one connection. It sends ("stage", name, at), then ("ready", Stages) or ("failed", Stages,
Failure), then ("done", StepResult) for each step and, told to stop, ("stopped", peaks, server samples). It
receives ("step", StepOrder) and ("stop",). Where the trial did not start the process itself, ("pid", pid)
comes before all. Instants are CLOCK_MONOTONIC seconds. It ends when told to, or when its trial is gone.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from crewbench.devices.budget import Ledger, OutOfMemory
from crewbench.devices.inventory import Device
from crewbench.engines import Account, Call, Completion, Engine, create
from crewbench.execute import preload
from crewbench.execute.made import Made
from crewbench.records import Status
from crewbench.trial import AgentSpec, TaskSpec


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs to know. Sizes in MiB. `zygote`: the imports were done before the fork.
    `asked_s` is when the worker was asked for (CLOCK_MONOTONIC): its time to load runs from there. `made` is
    the file in which it counts the tokens of the step that runs (None: several may run at once)."""

    worker: str
    engine: str
    model_path: str
    dtype: str
    devices: tuple[Device, ...]
    concurrency: int
    threads: int
    length: str
    tokens: int
    step_timeout_s: float
    storage: str
    zygote: bool
    weight_files: tuple[str, ...] = ()
    ledger: str | None = None
    budget_mib: float = 0.0
    weights_mib: float = 0.0
    kv_mib_per_token: float = 0.0
    inputs: dict[str, str] = field(default_factory=dict)
    engine_options: dict[str, Any] = field(default_factory=dict)
    runner_options: dict[str, Any] = field(default_factory=dict)
    load_timeout_s: float = 600.0
    asked_s: float = 0.0
    made: str | None = None


@dataclass(frozen=True, slots=True)
class StepOrder:
    """One step to run; `context` is what the steps before it wrote. With `calls`, these calls of the model
    are made again instead, straight through the engine, and no agent runs."""

    step: str
    agent: AgentSpec
    task: TaskSpec
    context: tuple[tuple[AgentSpec, TaskSpec, str], ...] = ()
    calls: tuple[Call, ...] = ()


LACKING = "lacking"
"""The fact that a worker could not import what its engine needs, and why."""


@dataclass(frozen=True, slots=True)
class Stages:
    """How far a worker came, in seconds per stage. `ended_s` is when it was ready or failed; `pids` are the
    processes that hold the model, where that is not the worker's own; `facts` what else its start told."""

    began_s: float
    import_s: float | None = None
    context_s: float | None = None
    load_s: float | None = None
    read_s: float | None = None
    copy_s: float | None = None
    compile_s: float | None = None
    cached_share: float | None = None
    ended_s: float | None = None
    pids: tuple[int, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker or a step ended. `oom` is OutOfMemory.to_dict() where it was one."""

    status: Status
    error: str
    oom: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    step: str
    status: Status
    started_s: float
    ended_s: float
    prefill_s: float = 0.0
    decode_s: float = 0.0
    first_token_s: float | None = None
    llm_calls: int = 0
    prompt_ids: list[list[int]] = field(default_factory=list)
    output_ids: list[list[int]] = field(default_factory=list)
    token_s: list[list[float]] = field(default_factory=list)
    text: str = ""
    error: str = ""
    oom: dict[str, Any] | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    calls: tuple[Call, ...] = ()


def lost_step(order: StepOrder, started_s: float, error: str) -> StepResult:
    """The result of a step whose process went away."""
    return StepResult(order.step, Status.ERROR, started_s, time.monotonic(), error=error)


def failure(exc: BaseException, devices: Sequence[Device]) -> Failure:
    """An exception as data, with its cause's name and words; an out-of-memory as what it is."""
    from crewbench.engines import StepTimeout

    if isinstance(exc, OutOfMemory):
        return Failure(Status.OOM, str(exc)[:2000], exc.among([d.uuid for d in devices]).to_dict())
    kind = Status.TIMEOUT if isinstance(exc, StepTimeout) else Status.ERROR
    return Failure(kind, f"{type(exc).__name__}: {exc}"[:2000])


def die_with(pidfd: int, first: Callable[[], object] = lambda: None) -> None:
    """End this process at once when the process behind `pidfd` ends, and do `first` before."""

    def watch() -> None:
        select.select([pidfd], [], [])
        try:
            first()
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="watch-trial", daemon=True).start()


def pin(devices: Sequence[Device]) -> list[str]:
    """Hide all other devices from this process, before CUDA starts. Returns torch device strings."""
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    gpus = [d for d in devices if d.kind == "gpu"]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(d.uuid for d in gpus)
    return [f"cuda:{i}" for i in range(len(gpus))] or ["cpu"]


def unchecked(wanted: Sequence[str], seen: Sequence[str]) -> list[str]:
    """Those of the wanted devices (NVML's UUIDs) of which CUDA does not tell whether it shows them.

    RuntimeError if it shows others. `seen` are CUDA's UUIDs, which lack NVML's "GPU-" or "MIG-". Of a MIG
    instance CUDA tells its own UUID or its GPU's (cuDeviceGetUuid_v2 and cuDeviceGetUuid): only one that is
    the instance's own says anything.
    """
    others = [uuid for uuid, told in zip(wanted, seen, strict=False) if uuid.partition("-")[2] != told]
    if len(seen) != len(wanted) or not all(uuid.startswith("MIG-") for uuid in others):
        raise RuntimeError(f"CUDA shows devices {list(seen)}, this worker was given {list(wanted)}")
    return others


def check_pinned(devices: Sequence[Device]) -> None:
    """RuntimeError if CUDA shows other devices than the ones this worker was given."""
    import torch

    wanted = [d.uuid for d in devices if d.kind == "gpu"]
    if not wanted:
        return
    count = torch.cuda.device_count()
    for uuid in unchecked(wanted, [str(torch.cuda.get_device_properties(i).uuid) for i in range(count)]):
        print(f"not checked: CUDA tells of {uuid} no UUID of its own", file=sys.stderr, flush=True)


def account_of(job: Job) -> Account:
    """Who counts the memory of the job's worker."""
    from crewbench.engines.account import CountedByDevice, SimulatedAccount

    if job.ledger is None:
        return CountedByDevice()
    slots = tuple(d.uuid for d in job.devices)
    return SimulatedAccount(
        Ledger(Path(job.ledger)), slots, job.budget_mib, job.weights_mib, job.kv_mib_per_token
    )


def make_engine(
    job: Job, torch_devices: Sequence[str], on_token: Callable[[], None] = lambda: None
) -> Engine:
    """The job's engine, to be held by this process; not loaded yet. It calls `on_token` after each token."""
    return create(
        job.engine,
        path=job.model_path,
        dtype=job.dtype,
        devices=torch_devices,
        length=job.length,
        tokens=job.tokens,
        account=account_of(job),
        on_token=on_token,
        **job.engine_options,
    )


def start_engine(
    job: Job, began_s: float, tell: Any, on_token: Callable[[], None] = lambda: None
) -> tuple[Any, Stages | None]:
    """Import and load. Returns the engine; (None, None) if it failed, once that is told."""
    from crewbench.checkpoint.files import cached_share
    from crewbench.engines import Loaded

    took: dict[str, float | None] = {}
    loading_since: float | None = None
    imported = False
    try:
        torch_devices = pin(job.devices)
        if job.zygote and preload.error:
            raise RuntimeError(f"the zygote could not import what {job.engine} needs: {preload.error}")
        if preload.done_for != (job.engine, job.model_path):
            preload.imports(job.engine, job.model_path)
        import torch

        from crewbench import crews

        imported = True
        crews.isolate(Path(job.storage))
        torch.set_num_threads(job.threads)
        took["cached_share"] = cached_share(job.weight_files, every=16) if job.weight_files else None
        engine = make_engine(job, torch_devices, on_token)
        loading_since = time.monotonic()
        took["import_s"] = loading_since - began_s
        tell(("stage", "load", loading_since))
        loaded: Loaded = engine.load()
        ended = time.monotonic()
        took.update(
            context_s=loaded.context_s,
            load_s=loaded.load_s,
            read_s=loaded.read_s,
            copy_s=loaded.copy_s,
            compile_s=loaded.compile_s,
        )
        check_pinned(job.devices)
        return engine, Stages(began_s=began_s, ended_s=ended, **took)
    except Exception as exc:
        ended = time.monotonic()
        if loading_since is None:
            took["import_s"] = ended - began_s
        else:
            took["load_s"] = ended - loading_since
        failed = failure(exc, job.devices)
        facts = {} if imported else {LACKING: failed.error}
        tell(("failed", Stages(began_s=began_s, ended_s=ended, facts=facts, **took), failed))
        traceback.print_exc()  # for the log, and after the trial knows
        return None, None


def run_step(engine: Any, job: Job, order: StepOrder) -> StepResult:
    """Run one agent's task on this worker's model, or make the order's calls again."""
    started = time.monotonic()
    deadline = started + job.step_timeout_s
    completions: list[Completion] = []
    failed, text = Failure(Status.OK, ""), ""
    try:
        if order.calls:
            completions += (engine.replay(call, deadline) for call in order.calls)
        else:
            text = _answer(engine, job, order, deadline, completions)
    except BaseException as exc:  # a library's SystemExit too: the thread's pool would keep it to itself
        failed = failure(exc, job.devices)
    ended = time.monotonic()
    return StepResult(
        step=order.step,
        status=failed.status,
        started_s=started,
        ended_s=ended,
        prefill_s=sum(c.prefill_s for c in completions),
        decode_s=sum(c.decode_s for c in completions),
        first_token_s=next((c.token_s[0] for c in completions if c.token_s), None),
        llm_calls=len(completions),
        prompt_ids=[c.prompt_ids for c in completions],
        output_ids=[c.output_ids for c in completions],
        token_s=[c.token_s for c in completions],
        text=text,
        error=failed.error,
        oom=failed.oom,
        prompt_tokens=sum(c.prompt_tokens for c in completions),
        output_tokens=sum(c.output_tokens for c in completions),
        calls=tuple(c.call for c in completions),
    )


def _answer(engine: Any, job: Job, order: StepOrder, deadline_s: float, calls: list[Completion]) -> str:
    """The agent's answer; the calls of the model that it took are added to `calls`."""
    from crewbench.crews import run_task
    from crewbench.engines.adapter import AgentLLM

    llm = AgentLLM(engine, deadline_s)
    try:
        return run_task(order.agent, order.task, order.context, llm, job.inputs)
    finally:
        calls += llm.completions


def main(conn: Connection, job: Job, trial_pidfd: Any, lease_fds: Any) -> None:
    """A worker's whole life. `lease_fds` are held open so that the device stays leased while it lives."""
    work(conn, job, trial_pidfd.fd)
    # Interpreter shutdown would wait for CrewAI's event threads; the work is done and reported.
    os._exit(0)


def work(conn: Connection, job: Job, trial_pidfd: int) -> None:
    """Start, and run steps until told to stop; what is left of the process then is of no use any more."""
    began = time.monotonic()
    die_with(trial_pidfd)
    sending = threading.Lock()

    def tell(message: tuple[Any, ...]) -> None:
        with sending:
            conn.send(message)

    tell(("stage", "import", began))
    made = Made(job.made)
    engine, stages = start_engine(job, began, tell, made.one_more)
    if engine is None:
        return
    tell(("ready", stages))

    import torch

    def run(order: StepOrder) -> None:
        tell(("done", run_step(engine, job, order)))
        made.reset()

    with ThreadPoolExecutor(
        job.concurrency, initializer=torch.set_num_threads, initargs=(job.threads,)
    ) as pool:
        while True:
            message = conn.recv()
            if message[0] == "stop":
                break
            pool.submit(run, message[1])
    tell(("stopped", {d.uuid: peak for d, peak in zip(job.devices, engine.peaks(), strict=False)}, []))
