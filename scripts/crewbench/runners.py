"""Runners hold workers. This file names them and says what each offers; it imports none.

To add one, add a file under execute/ with a class that takes a Setup and has `start(worker, devices, life,
attempt) -> Handle`, `zygote_s`, `runner_s`, `taints` and `elsewhere` (its parts on other hosts, as
execute/actor.py has them, or none), and a line to RUNNERS. Where it is the first of an engine's runners,
the file also has `held(job)`: a context that gives the job's engine, loaded and without agents.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """`module` and `cls` say where the runner is; `starts` the start states that it can bring about, the
    usual one first; `options` the variant options it takes, `one_worker_options` (option, why) those that
    two workers cannot both have; `extra` what must be installed (extras.py). Other runners are compared
    with the one that is the `baseline`; `metrics`: its workers are asked for theirs (servers.csv);
    `batches`: calls that are made at once are computed together. `ready_s` is rough and only for estimates:
    seconds until it can start workers."""

    module: str
    cls: str
    title: str
    starts: tuple[str, ...]
    options: tuple[str, ...] = ()
    one_worker_options: tuple[tuple[str, str], ...] = ()
    extra: str = ""
    baseline: bool = False
    metrics: bool = False
    batches: bool = False
    ready_s: float = 0.0


RUNNERS: dict[str, RunnerInfo] = {
    "process": RunnerInfo(
        "crewbench.execute.process",
        "ProcessRunner",
        "a process for each worker",
        starts=("zygote", "process", "disk"),
        baseline=True,
    ),
    "server": RunnerInfo(
        "crewbench.execute.server",
        "ServerRunner",
        "an HTTP server for each worker, and the agents as its clients",
        starts=("process", "disk"),
        options=("clients", "port"),
        one_worker_options=(("port", "two servers cannot listen on it"),),
        metrics=True,
        batches=True,
    ),
    "actor": RunnerInfo(
        "crewbench.execute.actor",
        "ActorRunner",
        "a Ray actor for each worker",
        starts=("process", "disk"),
        options=("ray_address", "hosts"),
        extra="ray",
        ready_s=8.0,
    ),
}
