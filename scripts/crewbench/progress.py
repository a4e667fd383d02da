"""What a user is told of the time: how long the trials will take, and after each one how many are left.

`Progress` is plain bookkeeping in words. `Follower` feeds it from Snakemake's own log events, in the process
and the thread that write them: no thread, no polling, nothing that runs while a trial does.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from crewbench import session, words
from crewbench.estimate import PACES, expected_s, in_words
from crewbench.matrix import HOST, Matrix, Trial
from crewbench.records import Status
from crewbench.words import count


def read_record(trial: Trial, root: Path = Path()) -> dict[str, Any] | None:
    """The trial.json of a trial that is done: of this Spec, with the files that it lists. Else None."""
    place = root / trial.dir
    try:
        found = json.loads((place / "trial.json").read_bytes())
        whole = all((place / name).exists() for name in found["files"])
        return found if found["spec8"] == trial.spec8 and whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def done(matrix: Matrix, root: Path = Path()) -> dict[str, dict[str, Any]]:
    """The records of the trials that are done, by trial id."""
    found = ((trial.trial_id, read_record(trial, root)) for trial in matrix)
    return {trial_id: known for trial_id, known in found if known is not None}


class Progress:
    """The trials of one call. Instants are seconds on one clock.

    `to_run` are the ids of those that will run, `known` the records of trials that ran before. `limits` are
    the workflow's resources `gpu` and `host`: how much may run at once. `cluster_jobs` is how many jobs a
    cluster is given at once, None without one: how long they wait there, nobody here can say.
    """

    def __init__(
        self,
        matrix: Matrix,
        to_run: Iterable[str],
        known: Mapping[str, Mapping[str, Any]],
        limits: Mapping[str, int] | None = None,
        cluster_jobs: int | None = None,
    ) -> None:
        self._cluster_jobs = cluster_jobs
        limits = {"gpu": matrix.devices.count, "host": HOST, **(limits or {})}
        self._matrix = matrix
        self._left = dict.fromkeys(to_run)
        self._all = len(self._left)
        self._gpus = limits["gpu"]
        self._shares = {
            trial_id: matrix.resources(trial_id)["host"] / limits["host"]
            if matrix.config.exclusive
            else matrix.trial(trial_id).cell.gpus / limits["gpu"]
            for trial_id in self._left
        }
        self._cells = {trial.trial_id: trial.cell for trial in matrix}
        self._estimated = {trial_id: matrix.estimated_s(trial_id) for trial_id in self._cells}
        self._measured: dict[str, float] = {}
        self._endings: Counter[str] = Counter()
        self._began_s: float | None = None
        self._started: dict[str, float] = {}
        self._before = sum(trial_id not in self._left for trial_id in known)
        for trial_id, found in known.items():
            self._learn(trial_id, found)

    def _learn(self, trial_id: str, found: Mapping[str, Any]) -> None:
        ran = session.ran(found)
        if ran is not None and ran.duration_s > 0:
            self._measured[trial_id] = ran.duration_s

    def left_s(self, now_s: float) -> float:
        """About how long until the last trial has ended."""
        expected = expected_s(self._cells, self._estimated, self._measured)
        between = PACES[self._matrix.devices.kind].between_s
        pieces = []
        for trial_id in self._left:
            running = now_s - self._started[trial_id] if trial_id in self._started else 0.0
            seconds = max(0.0, expected[trial_id] + between - running)
            pieces.append((self._shares[trial_id], seconds))
        return session.bound_s(pieces)

    def announcement(self) -> str:
        """What will run and for how long, or nothing where no trial will."""
        if not self._all:
            return ""
        to_run = f"{count(self._all, 'trial')} to run ({self._before:,} done before)"
        if self._cluster_jobs is not None:
            return f"{to_run}, at most {count(self._cluster_jobs, 'Slurm job')} at once"
        noun = "GPU" if self._matrix.devices.kind == "gpu" else "CPU slot"
        return f"{to_run}, about {in_words(self.left_s(0.0))} on {count(self._gpus, noun)}"

    def started(self, trial_id: str, now_s: float) -> None:
        self._began_s = now_s if self._began_s is None else self._began_s
        self._started[trial_id] = now_s

    def ended(self, trial_id: str, found: Mapping[str, Any] | None, now_s: float) -> str:
        """Take in that a trial's job ended, with its record (None: not measured). What to say of it."""
        self._left.pop(trial_id, None)
        if found is None:
            self._endings["not measured"] += 1
        else:
            self._learn(trial_id, found)
            if found["status"] != Status.OK:
                self._endings[words.ended(found["status"])] += 1
        bad = ", ".join(f"{n:,} {how}" for how, n in self._endings.items())
        text = f"{self._all - len(self._left):,} of {count(self._all, 'trial')} done"
        if bad:
            text += f" ({bad})"
        if self._left and self._cluster_jobs is not None:
            return text
        if self._left:
            return f"{text}, about {in_words(self.left_s(now_s))} left"
        return f"{text} in {in_words(now_s - (now_s if self._began_s is None else self._began_s))}"


class Follower(logging.Handler):
    """Hears Snakemake's events and says where the study stands. `begin` gives, once the jobs are known, the
    Progress and each trial's job id with its trial id; `say` writes a line."""

    def __init__(
        self,
        begin: Callable[[], tuple[Progress, Mapping[int, str]]],
        read: Callable[[str], Mapping[str, Any] | None],
        say: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._begin, self._read, self._say = begin, read, say
        self._progress: Progress | None = None
        self._jobs: Mapping[int, str] = {}
        self._settled: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._hear(record)
        except Exception:  # a line less must not cost a study
            self.handleError(record)

    def _hear(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)  # a LogEvent, which is a string
        if event == "run_info" and self._progress is None:
            self._progress, self._jobs = self._begin()
            if text := self._progress.announcement():
                self._say(text)
        elif event == "job_started":
            for job in record.jobs:
                if job in self._jobs:
                    self._progress.started(self._jobs[job], time.monotonic())
        elif event == "job_finished":
            self._ended(record.job_id, measured=True)
        elif event == "job_error":
            self._ended(record.jobid, measured=False)

    def _ended(self, job: int, measured: bool) -> None:
        if job not in self._jobs or job in self._settled:
            return
        self._settled.add(job)
        trial_id = self._jobs[job]
        found = self._read(trial_id) if measured else None
        self._say(self._progress.ended(trial_id, found, time.monotonic()))


def follow(workflow: Any, matrix: Matrix, on_cluster: bool = False) -> None:
    """Tell the user of this Snakemake call, in its own log, how long its trials will take and what is left.

    For the call that a person made, dry or not; the calls that Snakemake makes of itself, on a cluster's
    nodes, know of one job each and count none.
    """
    from snakemake.logging import logger
    from snakemake.settings.enums import Quietness

    def begin() -> tuple[Progress, dict[int, str]]:
        dag = workflow.dag
        jobs = {dag.jobid(job): job.wildcards.trial for job in dag.needrun_jobs() if job.rule.name == "trial"}
        limits = {name: r.value for name, r in workflow.global_resources.items() if name in ("gpu", "host")}
        cluster_jobs = workflow.nodes if on_cluster else None
        return Progress(matrix, jobs.values(), done(matrix), limits, cluster_jobs), jobs

    def say(text: str) -> None:
        logger.info(f"crewbench: {text}", extra={"quietness": Quietness.PROGRESS})

    if workflow.is_main_process and not workflow.touch:
        logger.addHandler(Follower(begin, lambda trial_id: read_record(matrix.trial(trial_id)), say))
