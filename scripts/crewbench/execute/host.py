"""Runs one trial on this host: leases devices, brings the start state about, executes, writes the files."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crewbench import modes, provenance
from crewbench import start as starts
from crewbench.checkpoint import files, footprint, manifest, stage
from crewbench.deployment import Deployment, Worker
from crewbench.devices import allocation, bandwidth, nvml, sampler
from crewbench.devices.ballast import Ballast, ballasts
from crewbench.devices.inventory import Device, DeviceError, usable
from crewbench.devices.lease import lease
from crewbench.engines import ENGINES, compile_cache
from crewbench.engines.compile_cache import CompileCache
from crewbench.execute import surroundings
from crewbench.execute.outpost import Begin
from crewbench.execute.run import Bench, Records, execute, rehearse
from crewbench.execute.setup import RunnerError, Setup
from crewbench.execute.worker import LACKING
from crewbench.records import (
    AgentRow,
    Identity,
    OomRow,
    RoundRow,
    ServerRow,
    Status,
    WorkerRow,
    canonical_json,
    write_csv,
)
from crewbench.runners import RUNNERS
from crewbench.start import STARTS, Start
from crewbench.trial import Spec

MIB = 2**20
MEMORY_FREE_S = 60.0


def run_trial(
    spec: Spec,
    out: Path,
    scratch: Path,
    root: Path,
    stage_in: Path | None = None,
    stage_said: str | None = None,
    only: int | None = None,
) -> Status:
    """Run the trial, or the attempt number `only` of it on as many devices as that one takes, and write its
    files into `out`, trial.json last. Returns the status.

    `stage_in` is this host's directory for the checkpoint's copy, if it is to have one.

    Raises what only a broken harness or a wrong request raises: DeviceError, CheckpointError, OSError.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "trial.json").unlink(missing_ok=True)  # a trial that is being run is not done
    zero_s, zero_wall_s = time.monotonic(), time.time()
    host = provenance.host()
    cell = spec.cell
    identity = Identity(
        spec.trial_id,
        cell.mode,
        cell.gpus,
        cell.agents,
        cell.engine,
        cell.start,
        cell.variant,
        spec.repeat,
        host,
    )
    attempts = list(modes.get(cell.mode).attempts(cell))
    start = STARTS[cell.start]
    model = manifest.load(spec.model_dir)
    model_dir = Path(spec.model_dir)

    taints: list[str] = []
    with ExitStack() as held:
        wanted = cell.gpus // cell.hosts if only is None else len(attempts[only - 1].devices)
        all_devices = usable(spec.device_kind, spec.device_count, wanted, spec.memory_mib)
        leased = held.enter_context(
            lease(all_devices, wanted, exclusive_host=spec.exclusive, holder=spec.trial_id)
        )
        # The host is this trial's now: copying would disturb another that is being measured.
        staged = None if stage_in is None else stage.stage(model, model_dir, stage_in)
        if staged is not None:
            model_dir = staged.directory
            model = manifest.load(model_dir)
            print(staged, file=sys.stderr, flush=True)
        weight_files = tuple(model.weight_files(model_dir))
        simulated = all(d.kind == "slot" for d in leased.devices)
        ledger = scratch / "ledger.json" if simulated else None
        setup = Setup(
            spec=spec,
            start=start,
            model_path=model.directory(model_dir),
            weight_files=weight_files,
            weights_mib=footprint.weights_bytes(model, spec.dtype) / MIB,
            kv_mib_per_token=footprint.kv_bytes_per_token(model.architecture, spec.dtype) / MIB,
            ledger=ledger,
            scratch=scratch,
            lease_fds=leased.fds,
            attempts=attempts,
            stage=stage_said,
        )
        ballast: dict[str, Ballast] = {}
        if spec.memory_mib is not None and not simulated:
            ballast = held.enter_context(ballasts(leased.devices, spec.memory_mib, leased.fds))
        free_mib = {} if simulated else nvml.free_mib([d.uuid for d in leased.devices])

        def memory_free() -> None:
            """A dead process's GPU memory comes back a moment later; a slot's is gone with its process."""
            try:
                seen = not free_mib or nvml.wait_until_free(free_mib, MEMORY_FREE_S)
            except DeviceError as error:
                taints.append(f"whether ended workers' memory was free is not known: {error}")
                return
            if not seen:
                taints.append(f"memory of ended workers was not seen free within {MEMORY_FREE_S:.0f} s")

        first = attempts[(only or 1) - 1]
        compiled = compiled_before(
            spec, start, first.workers[0], model.model_id, leased.devices, host, scratch
        )
        os.environ.update(compiled.environment)  # before the zygote and the workers, which inherit it
        runners = {name: _runner(name, setup) for name in _runners(attempts)}
        elsewhere = [part for runner in runners.values() for part in runner.elsewhere]
        devices = (
            *(replace(d, host=host) for d in leased.devices),
            *(d for x in elsewhere for d in x.devices),
        )
        sampling = sampler.Sampler(
            path=out / "gpu.csv",
            identity=identity,
            devices=leased.devices,
            hz=spec.sampler_hz,
            zero_s=zero_s,
            ledger=ledger,
            ballast_mib={uuid: b.mib for uuid, b in ballast.items()},
        )
        bench = Bench(
            devices=devices,
            start=lambda worker, devices, life, attempt: runners[worker.runner].start(
                worker, devices, life, attempt
            ),
            memory_free=memory_free,
            agents=spec.agents,
            tasks={t.name: t for t in spec.tasks},
            warm_rounds=spec.warm_rounds,
            load_timeout_s=spec.load_timeout_s,
            step_timeout_s=spec.step_timeout_s,
            zero_s=zero_s,
            ballast={uuid: (b.pid, b.mib) for uuid, b in ballast.items() if b.pid},
            replay=spec.replay,
        )
        if start.keeps_compiled and compiled.lacking:
            print(f"{spec.trial_id}: nothing compiled yet: a worker starts before the clock", file=sys.stderr)
            compiled = compiled_now(compiled, first, bench, scratch)
            if compiled.lacking:
                taints.append(f"the worker that was to compile before the clock ended as {compiled.made}")
        before = provenance.pressure()
        sampling.start()
        workers: dict[str, set[int]] = {host: set()}
        try:
            for part in elsewhere:
                part.begin(Begin(identity, spec.sampler_hz, start.cached, zero_s))
            (files.warm if start.cached else files.evict)(weight_files)
            records = execute(attempts, bench, only)
            check_imports(records)
            # A cluster that was there before starts workers too: they do not descend from this trial.
            for row in records.workers:
                if row.pid is not None:
                    workers.setdefault(host_of(devices, row.device_uuid), set()).add(row.pid)
        except files.PageCacheError as error:
            print(f"{spec.trial_id}: {error}", file=sys.stderr)
            records = refused(first, spec, str(error), time.monotonic() - zero_s, only or 1)
        finally:
            lost = [uuid for uuid, b in ballast.items() if not b.alive]
            sampled = sampling.stop([*(b.pid for b in ballast.values() if b.pid), *workers[host]])
        pressure = provenance.pressure_since(before)
        for part in elsewhere:
            try:
                found = part.finish(workers.get(part.name, set()))
            except RunnerError as error:
                taints.append(f"what was sampled on another host is lost: {error}")
                continue
            add_samples(out / "gpu.csv", sampled, found)
            if found["shared_host"]:
                taints.append(f"another trial ran on {part.name} at the same time")
        # No timer runs any more, and the devices are still this trial's.
        copied = bandwidth.measured(leased.devices)
        if leased.shared_host:
            taints.append("another trial ran on this host at the same time")
        for runner in runners.values():
            taints.extend(runner.taints)
        for where in {d.host for d in devices}:
            taints.extend(starts.taints(start, shares(records, [d.uuid for d in devices if d.host == where])))
        if records.restarts:
            taints.append(f"workers died and were started again: {records.restarts}")
        taints.extend(f"the ballast on {uuid} died, so the budget did not hold" for uuid in lost)
        taints.extend(sampler.taints(sampled))

    count_own_tokens(records, spec, model.directory(model_dir))
    # Where nothing came to run, at least the output's length is known.
    lengths = ((a.prompt_tokens + a.output_tokens) / a.llm_calls for a in records.agents if a.llm_calls)
    longest = math.ceil(max(lengths, default=spec.output_tokens))
    context_mib = 0.0 if simulated else footprint.CUDA_CONTEXT_MIB
    for row in (*records.workers, *records.ooms):
        placed = attempts[row.attempt - 1].worker(row.worker)
        sequences = min(placed.concurrency, cell.agents)
        predicted = footprint.predicted_mib(model, longest, sequences, dtype=spec.dtype)
        row.predicted_mib = predicted / len(placed.devices) + context_mib
    for row in records.workers:
        seen = sampled["process_peak_mib"].get(row.device_uuid, {})
        peak = _total(seen.get(pid) for pid in (row.pid, *records.pids.get(row.pid, ())))
        if simulated:
            row.allocated_peak_mib = peak
        else:
            row.nvml_process_peak_mib = peak
    hosts = {d.uuid: d.host for d in devices}
    for row in records.workers:
        hosts[row.attempt, row.worker] = hosts[row.device_uuid]

    def of(row: AgentRow | WorkerRow | OomRow) -> str | None:
        return hosts.get((row.attempt, row.worker))

    write_csv(out / "agents.csv", AgentRow, identity, records.agents, of)
    write_csv(out / "workers.csv", WorkerRow, identity, records.workers, of)
    write_csv(out / "rounds.csv", RoundRow, identity, records.rounds)
    write_csv(out / "ooms.csv", OomRow, identity, records.ooms, of)
    write_csv(out / "replays.csv", AgentRow, identity, records.replays, of)
    write_csv(out / "servers.csv", ServerRow, identity, records.servers)
    write_outputs(out / "outputs.jsonl", identity, records)
    status = records.status
    finish(
        out,
        {
            "trial_id": spec.trial_id,
            "spec8": spec.spec8,
            "spec": asdict(spec),
            "identity": asdict(identity),
            "workload": attempts[0].workload,
            "status": status,
            "finished_wall_s": time.time(),
            "anchor": {"zero_monotonic_s": zero_s, "zero_wall_s": zero_wall_s, "host": host},
            "environment": provenance.environment(root),
            "hosts": [part.record for part in elsewhere],
            "devices": [asdict(d) for d in devices],
            "simulated_budget": simulated,
            "model": {
                "model_id": model.model_id,
                "sha256": model.sha256,
                "parameters": model.parameters,
                "weights_bytes": model.weights_bytes,
                "decode_bytes": footprint.decode_bytes(model, spec.dtype),
            },
            "staged": staged.record() if staged is not None else None,
            "bandwidth_gb_s": copied,
            "compile_cache": compiled.record(),
            "random_weights": model.random_weights,
            "lease_waited_s": leased.waited_s,
            "allocations": in_allocations(leased.devices),
            "zygote_s": next((r.zygote_s for r in runners.values() if r.zygote_s is not None), None),
            "runner_s": next((r.runner_s for r in runners.values() if r.runner_s is not None), None),
            "sampler": sampled,
            "workers": records.facts,
            "pressure": pressure,
            "taints": taints,
        },
    )
    return status


def in_allocations(devices: Sequence[Device]) -> list[dict[str, Any]]:
    """What trial.json says of the allocations that the trial ran in, none outside a cluster: job, node,
    devices, and the time in the queue, which is no part of any round."""
    given = allocation.current()
    if given is None:
        return []
    where = {"job_id": given.job_id, "host": given.node, "devices": [d.uuid for d in devices]}
    return [where | allocation.waited(given.job_id)]


def check_imports(records: Records) -> None:
    """RunnerError if no worker could import what it needs: that is no result, from whichever start state."""
    lacking = [facts.get(LACKING) for facts in records.facts.values()]
    lives = {(row.attempt, row.worker, row.worker_life) for row in records.workers}
    if lives and len(lacking) == len(lives) and all(lacking):
        raise RunnerError(f"no worker could import what it needs: {lacking[0]}")


def shares(records: Records, uuids: Collection[str]) -> list[float | None]:
    """How much of the weights each worker on these devices that loaded them found in the page cache."""
    return [r.cached_share for r in records.workers if r.device_uuid in uuids and r.load_s is not None]


def count_own_tokens(records: Records, spec: Spec, model: Path) -> None:
    """Fill in `task_tokens`: the ids of the texts that are the agent's and the task's own, without template
    or framework. Left empty where the checkpoint has no tokenizer.json."""
    from tokenizers import Tokenizer

    if not (model / "tokenizer.json").exists():
        return
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    agents = {agent.name: agent for agent in spec.agents}
    tasks = {(x.step, x.agent): spec.task(x.task) for x in records.outputs}
    for row in (*records.agents, *records.replays):
        if (task := tasks.get((row.step, row.agent))) is not None:
            agent = agents[row.agent]
            texts = (agent.role, agent.goal, agent.backstory, task.description, task.expected_output)
            own = "\n".join(texts)
            for name, value in spec.inputs.items():
                own = own.replace("{" + name + "}", value)
            row.task_tokens = len(tokenizer.encode(own, add_special_tokens=False).ids)


def host_of(devices: Iterable[Device], uuid: str) -> str:
    return next(d.host for d in devices if d.uuid == uuid)


def add_samples(path: Path, sampled: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Add another host's rows to gpu.csv and what its sampler found to what the trial's own did. What is by
    device stays apart; of samples and late ones the trial's own are counted."""
    with path.open("a", encoding="utf-8") as file:
        file.write(found["rows"])
        file.flush()
        os.fsync(file.fileno())
    for key in ("process_peak_mib", "foreign", "unresolved", "throttle"):
        sampled[key] |= found["sampled"][key]
    sampled["errors"] += found["sampled"]["errors"]
    sampled["messages"] = [*sampled.get("messages", []), *found["sampled"]["messages"]]


def _total(parts: Iterable[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _runners(attempts: Iterable[Deployment]) -> set[str]:
    return {worker.runner for attempt in attempts for worker in attempt.workers}


def _runner(name: str, setup: Setup) -> Any:
    info = RUNNERS[name]
    return getattr(importlib.import_module(info.module), info.cls)(setup)


def compiled_before(
    spec: Spec,
    start: Start,
    worker: Worker,
    model_id: str,
    devices: Sequence[Device],
    host: str,
    scratch: Path,
) -> CompileCache:
    """What the trial's engine finds compiled, by the start state: nothing, or what earlier starts left."""
    engine = ENGINES[spec.cell.engine]
    if not engine.compile_cache:
        return CompileCache(None)
    if not start.keeps_compiled:
        return compile_cache.at(scratch / "compiled")
    options = {k: v for k, v in spec.cell.options.items() if k in engine.options}
    kinds = sorted({d.name for d in devices})
    # Another host's may have been compiled for another processor, and lie on another disk.
    name = compile_cache.name(
        spec.cell.engine, model_id, dtype=spec.dtype, options=options, devices=kinds, host=host
    )
    if spec.cell.hosts > 1:  # a start here fills no other host's: what lies here is all that can be said
        return compile_cache.at(compile_cache.KEPT / name)
    kind = compile_cache.kind(
        devices=len(worker.devices),
        concurrency=worker.concurrency,
        runner=worker.runner,
        tokens=spec.output_tokens,
        memory_mib=spec.memory_mib,
    )
    return compile_cache.at(compile_cache.KEPT / name, kind)


def compiled_now(cache: CompileCache, deployment: Deployment, bench: Bench, scratch: Path) -> CompileCache:
    """The cache after a worker was started for it before round 0: such a start state says that what is
    compiled lies on disk, as it says that the weights are in the page cache. What else the worker left is
    removed, for the trials after this one will not find it."""
    began = time.monotonic()
    with surroundings.unchanged(scratch, keep=("ray", "ledger.json")):
        ended = rehearse(deployment, bench)
    return compile_cache.made(cache.directory, cache.kind, ended, time.monotonic() - began)


def refused(deployment: Deployment, spec: Spec, reason: str, at_s: float, attempt: int) -> Records:
    """The records of a trial whose start state could not be had: every step skipped, and why."""
    records = Records()
    for step in deployment.steps:
        records.agents.append(
            AgentRow(
                round=0,
                phase="cold",
                attempt=attempt,
                step=step.name,
                agent=spec.agents[step.agent].name,
                worker=step.workers[0],
                worker_life=0,
                status=Status.SKIPPED,
                error=reason,
            )
        )
    records.rounds.append(RoundRow(0, "cold", attempt, 0, at_s, at_s, 0.0, status=Status.SKIPPED))
    return records


def write_outputs(path: Path, identity: Identity, records: Records) -> None:
    """One JSON line per step: what went in and came out as ids, when, and the text."""
    with path.open("w", encoding="utf-8") as file:
        for output in records.outputs:
            file.write(canonical_json({**asdict(identity), **asdict(output)}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def finish(out: Path, trial: dict[str, Any]) -> None:
    """Write trial.json, with the hashes of all other files, in one step: its presence says done."""
    hashes = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.iterdir())
        if p.suffix in (".csv", ".jsonl")
    }
    new = out / "trial.json.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump({**trial, "files": hashes}, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(out / "trial.json")
    print(f"{trial['trial_id']}: {trial['status']}", file=sys.stderr)
