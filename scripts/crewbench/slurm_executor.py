"""Snakemake's Slurm plugin with its faults mended, for the versions that cluster.VERSIONS names.

    where the plugin                                               here
    forgets its jobs after five failed queries, and hangs          they are asked for again
    takes sacct's "CANCELLED by 0" for a running job, and hangs    the first word counts
    asks less and less often, up to every three minutes            every `seconds-between-status-checks`
    fails all jobs that it submits while the controller is away    waits for the controller
    fails a job that Slurm puts back into its queue just then      a failure must last
    takes a preempted job for one that will go on, and hangs       it failed, unless it is queued again
    waits for ever for a job that Slurm can never start            it fails with Slurm's reason
    waits for ever for a job that Slurm has forgotten              what the job wrote says how it ended
    misses jobs on Ctrl-C that it asks for or submits just then    all of the call's jobs are cancelled
    gives a step of an exclusive job a part of its node's cores    it has all of them, as without Slurm
    starts Snakemake in a job's step to start it once more         a step runs the rule (slurm_step.py)
    knows one job of Slurm for each trial, or arrays of them       trials may share one, in turn
    tells one word of why a job failed                             Slurm's own words follow

It imports the plugin: only what uses it imports this.
"""

from __future__ import annotations

import asyncio
import errno
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import snakemake_executor_plugin_slurm as plugin
from snakemake_executor_plugin_slurm_jobstep import get_cpu_setting, get_gpu_setting, get_node_setting
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from crewbench.devices import allocation
from crewbench.trial import MORE

FORGOTTEN_S = 120.0
"""How long Slurm may answer queries without a word of a job before it counts as lost. A controller that comes
back knows its jobs at once."""
FAILURES = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "ERROR")
PREEMPTED = "PREEMPTED"
NEVER = ("BadConstraints", "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit")
"""Slurm's reasons to keep a job in its queue that do not pass by themselves."""
LASTING_S = 3.0
"""How long a job must have been seen failed to count as such."""
AWAY_S = 5.0
"""How long to wait before looking again for a controller that does not answer."""
LACKS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""What this host lacks for a moment when it is asked for a process."""
GATHER_S = 1.0
"""How long to wait for more jobs that may share one of Slurm's."""
PER_JOB = "trials_per_job"
"""The resource that says how many of a rule's jobs may share one of Slurm's."""
STEP = Path(__file__).with_name("slurm_step.py")
SAID = ("JobState", "Reason", "ExitCode", "NodeList", "RunTime", "TimeLimit")
"""What Slurm is quoted with, of a job that failed."""
WORDS = re.compile(r"^(?:slurmstepd|srun)\S*: error: .+", re.MULTILINE)
"""What Slurm's own programs complain of in a job's log."""


def mend() -> None:
    """Let this process use what is here instead of the plugins' own."""
    ExecutorPluginRegistry().get_plugin("slurm").executor = Executor
    plugin.query_job_status = query_job_status
    plugin.get_min_job_age = min_job_age


_min_job_age = plugin.get_min_job_age
_min_job_age_s: int | None = None


def min_job_age() -> int | None:
    """How long the controller remembers ended jobs, in seconds: as it said when it last answered. The plugin
    asks each time, and turns to sacct when there is no answer."""
    global _min_job_age_s
    _min_job_age_s = _min_job_age() or _min_job_age_s
    return _min_job_age_s


_query = plugin.query_job_status
_states: dict[str, str] | None = None
"""What the last query said of each job; None where it was not answered."""


async def query_job_status(command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
    """The plugin's query, with one word for each job's state."""
    global _states
    states, seconds = await _query(command, logger)
    if states is not None:
        states = lasting({j: s.split()[0] if s else s for j, s in states.items()}, _failing, time.monotonic())
    _states = states
    return states, seconds


_failing: dict[str, float] = {}


def lasting(states: dict[str, str], failing: dict[str, float], now_s: float) -> dict[str, str]:
    """The states of jobs, without failures that have not lasted: a job that Slurm puts back into its queue
    reads as failed for a moment. `failing` holds since when each job has been seen failed."""
    found = {}
    for job, state in states.items():
        if state not in (*FAILURES, PREEMPTED):
            failing.pop(job, None)
        elif now_s - failing.setdefault(job, now_s) < LASTING_S:
            state = "COMPLETING"
        elif state == PREEMPTED:  # the plugin takes it for a job that goes on
            state = "CANCELLED"
        found[job] = state
    return found


class Batch:
    """Jobs of one rule that share a job of Slurm, in turn. To the plugin it is their first one, with the time
    of all and, for Snakemake inside the job, all as targets."""

    def __init__(self, jobs: Sequence[Any]) -> None:
        self.jobs = tuple(sorted(jobs, key=lambda job: -job.priority))  # as they will run
        first = self.jobs[0].resources
        names = dict(first.items())
        if "runtime" in names:
            names["runtime"] = sum(job.resources.runtime for job in self.jobs)
        self.resources = type(first)(fromdict=names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.jobs[0], name)

    def get_target_spec(self) -> list[Any]:
        return [spec for job in self.jobs for spec in job.get_target_spec()]

    def get_wait_for_files(self) -> list[Any]:
        return list(dict.fromkeys(file for job in self.jobs for file in job.get_wait_for_files()))


def most(job: Any) -> int:
    """How many jobs may share one of Slurm's with this one: none does where trials may ask for a larger
    allocation, which is one trial's."""
    if job.is_group() or job.restart_times:
        return 1
    return int(job.resources.get(PER_JOB, 1) or 1)


def alike(job: Any) -> tuple[Any, ...]:
    """What jobs have in common that may share one of Slurm's: all that Slurm is asked for but the time."""
    asked = {name: str(value) for name, value in job.resources.items() if name != "runtime"}
    return job.rule.name, job.threads, job.attempt, tuple(sorted(asked.items()))


def left(job: Any) -> list[tuple[int, int] | None]:
    """Of each file of a job's output which one it is, and since when; None where there is none."""
    found = []
    for file in job.output:
        try:
            seen = Path(file).stat()
            found.append((seen.st_ino, seen.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


class Executor(plugin.Executor):
    """The plugin's executor. Which job is done, failed or still wanted is the plugin's to say; that none is
    lost on the way is looked after here."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before all else: the thread that looks after jobs is started in here.
        self._over = threading.Event()
        self._settled: set[int] = set()
        self._unseen_since: dict[str, float] = {}
        self._away = False
        self._gathered: dict[tuple[Any, ...], list[Any]] = {}
        self._gathering = threading.Lock()
        self._left_before: dict[Any, list[tuple[int, int] | None]] = {}
        self._failed_since: dict[Any, float] = {}
        super().__init__(workflow, logger)

    # ---- submitting

    def run_jobs(self, jobs: list[Any]) -> None:
        """Submit jobs, those that may share one of Slurm's when there are enough of them or no more come."""
        super().run_jobs([job for job in jobs if most(job) == 1])
        for job in jobs:
            if most(job) > 1:
                self.run_job_pre(job)
                self._gather(job)

    def _gather(self, job: Any) -> None:
        key = alike(job)
        with self._gathering:
            together = self._gathered.setdefault(key, [])
            together.append(job)
            full = len(together) >= most(job)
        if full:
            self._submit_gathered(key, job)
        else:
            later = threading.Timer(GATHER_S, self._submit_gathered, [key, job])
            later.daemon = True
            later.start()

    def _submit_gathered(self, key: tuple[Any, ...], latest: Any) -> None:
        """Submit what was gathered, unless another job came after this one."""
        with self._gathering:
            if self._gathered.get(key, [None])[-1] is not latest:
                return
            jobs = self._gathered.pop(key)
        if jobs and not self._over.is_set():
            self._job_submission_executor.submit(self.run_job, Batch(jobs) if len(jobs) > 1 else jobs[0])

    def additional_general_args(self) -> str:
        """None: Snakemake in the job runs the rule itself, not as one more executor."""
        return ""

    def format_job_exec(self, job: Any) -> str:
        """What Slurm's job runs: Snakemake for the rule, in a step that holds what was asked for."""
        command = super().format_job_exec(job)
        if isinstance(job, Batch):
            # As many cores as one of them takes, so they run in turn; one that fails does not end the others.
            command += f" --cores {job.threads} --keep-going"
        return f"{shlex.join([sys.executable, str(STEP)])} {' '.join(step_options(job))} -- {command}"

    def report_job_submission(self, job_info: SubmittedJobInfo, register_job: bool = True) -> None:
        if not isinstance(job_info.job, Batch):
            super().report_job_submission(job_info, register_job=register_job)
            return
        names = ", ".join(str(job.jobid) for job in job_info.job.jobs)
        self.logger.info(f"crewbench: SLURM jobid {job_info.external_jobid} holds the jobs {names}, in turn")
        for job in job_info.job.jobs:
            own = SubmittedJobInfo(job, external_jobid=job_info.external_jobid, aux=job_info.aux)
            super().report_job_submission(own, register_job=register_job)

    def run_job(self, job: Any) -> None:
        """Submit a job once the controller answers. What is raised in this thread, nobody reads."""
        try:
            while not self._over.is_set() and not answers():
                self._note(away=True)
                self._over.wait(AWAY_S)
            if self._over.is_set():
                return
            for one in job.jobs if isinstance(job, Batch) else [job]:
                self._left_before[one] = left(one)
                forget_wish(one)
        except Exception as error:
            self._report_job_error_threadsafe(SubmittedJobInfo(job), f"It could not be submitted: {error}")
            return
        super().run_job(job)

    # ---- looking after jobs

    async def sleep(self) -> None:
        """Until the next query, or until there is nothing left to ask."""
        until = time.monotonic() + self.workflow.remote_execution_settings.seconds_between_status_checks
        while self.wait and time.monotonic() < until:
            await asyncio.sleep(0.2)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        self._settled.clear()
        self._give_up_stuck(active_jobs)
        active_jobs = [job for job in active_jobs if id(job) not in self._settled]
        async for job in super().check_active_jobs(active_jobs):
            if not self._forgotten(job):
                yield job
            self._settled.add(id(job))
        for job in active_jobs:
            if id(job) not in self._settled:
                yield job
        if active_jobs:
            self._note(away=_states is None)

    def _give_up_stuck(self, active_jobs: Sequence[SubmittedJobInfo]) -> None:
        """Fail and cancel those that Slurm says it can never start: they would wait in silence. It is asked
        only of jobs that waited when it answered last: a question stops all else here."""
        waiting = [job for job in active_jobs if (_states or {}).get(job.external_jobid) == "PENDING"]
        stuck = never_starting(f"--name={self.run_uuid}") if waiting else {}
        for job in waiting:
            if job.external_jobid in stuck:
                self._failed_since[job.job] = float("-inf")  # it never ran: no file of it is on its way
                why = f"Slurm can never start job {job.external_jobid}: {stuck[job.external_jobid]}"
                self.report_job_error(job, why)
        if stuck:
            subprocess.run(["scancel", *stuck], capture_output=True, check=False)

    def _forgotten(self, job: SubmittedJobInfo) -> bool:
        """Whether Slurm has not known the job for so long that what it wrote must say how it ended."""
        known, now = job.external_jobid, time.monotonic()
        if known in (_states or {}):
            self._unseen_since.pop(known, None)
            return False
        if now - self._unseen_since.setdefault(known, now) < FORGOTTEN_S:
            return False
        if self._finished(job.job):
            self.report_job_success(job)
        else:
            self.report_job_error(job, f"Slurm knows nothing of job {known} any more, and it left no result")
        return True

    def _note(self, away: bool) -> None:
        """Tell once that Slurm does not answer, and once that it does again."""
        if away:
            self._unseen_since.clear()  # who does not answer has forgotten nothing
        if away != self._away:
            self._away = away
            said = "does not answer: its jobs go on, and it is asked again" if away else "answers again"
            self.logger.warning(f"crewbench: Slurm's controller {said}")

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        self._settled.add(id(job_info))
        super().report_job_success(job_info)

    def report_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **details: Any) -> None:
        """Of a job that failed: why. Of a trial that wants a larger allocation: that it gets another try,
        which nothing else does."""
        job = job_info.job
        if isinstance(job, Batch):  # it could not be submitted
            for one in job.jobs:
                self.report_job_error(SubmittedJobInfo(one), msg, **details)
            return
        if most(job) > 1 and self._finished(job):  # the job of Slurm that it shared with others failed
            self.report_job_success(job_info)
            return
        if job_info.external_jobid and (self._may_show_yet(job) or self._cannot_say()):
            return  # and it is looked at again
        self._settled.add(id(job_info))
        if why := asks_for_more(job):
            self.logger.info(f"crewbench: {why}")
            self.workflow.scheduler.error_callback(job)
            return
        if job.params.get("kept"):
            job._attempt = job.restart_times + 1  # its setter would evaluate resources again
        said = words(job_info.external_jobid, job_info.aux.get("slurm_logfile") if job_info.aux else None)
        super().report_job_error(job_info, msg=f"{msg or ''}{said}\n", **details)

    def _finished(self, job: Any) -> bool:
        """Whether a job wrote all its files since it was submitted last: those from before are no result."""
        before = self._left_before.get(job)
        return before is not None and all(
            now is not None and now != then for now, then in zip(left(job), before, strict=True)
        )

    def _may_show_yet(self, job: Any) -> bool:
        """Whether files of a job that shared one with others may still be on their way here: a network's file
        system shows them late, and what Snakemake takes for failed it removes."""
        if most(job) == 1 or job not in self._left_before or self._over.is_set():
            return False
        now = time.monotonic()
        return now - self._failed_since.setdefault(job, now) < self.workflow.execution_settings.latency_wait

    def _cannot_say(self) -> bool:
        """Whether the controller that knows why a job failed is away."""
        return not self._over.is_set() and not answers()

    # ---- the end

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel what was submitted, and submit nothing more."""
        self._over.set()
        super().cancel_jobs(active_jobs)
        self._cancel_all()

    def shutdown(self) -> None:
        super().shutdown()
        if self._over.is_set():
            self._cancel_all()  # what was being submitted in that moment

    def _cancel_all(self) -> None:
        """Cancel this call's jobs by their common name: the plugin's list may lack some of them."""
        command = ["scancel", f"--name={self.run_uuid}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            self.logger.error(
                f"crewbench: its jobs may still be in Slurm's queue, because `{shlex.join(command)}` failed; "
                f"run it again later. Slurm: {done.stderr.strip()}"
            )


def step_options(job: Any) -> list[str]:
    """What the step of a job asks srun for. Of an exclusive job's node it has all cores: how many a trial
    has must not depend on how many workers it starts."""
    alone = "--exclusive" in str(job.resources.get("slurm_extra") or "")
    cpus = "" if alone else get_cpu_setting(job, "gpu" in dict(job.resources.items()))
    return list(filter(None, [cpus, get_gpu_setting(job), get_node_setting(job)]))


def never_starting(which: str) -> dict[str, str]:
    """Job id -> Slurm's reason, of those of this user's waiting jobs that can never start. None of them where
    Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--states=PENDING", "--format=%i|%r", which]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = (line.split("|", 1) for line in said.splitlines() if "|" in line)
    return {job: reason for job, reason in rows if reason in NEVER}


def asks_for_more(job: Any) -> str:
    """Why a trial's job that failed wants a larger allocation; nothing where it just failed."""
    kept = job.params.get("kept")
    try:
        return Path(kept, MORE).read_text(encoding="utf-8") if kept else ""
    except OSError:
        return ""


def forget_wish(job: Any) -> None:
    """Take away what an earlier allocation left to ask for this one: should the trial's node fail before the
    trial starts, nothing asks for one more."""
    if kept := job.params.get("kept"):
        Path(kept, MORE).unlink(missing_ok=True)


def answers() -> bool:
    """Whether a controller of Slurm answers. Its exit code is not the same in all versions, its word is.
    OSError where it cannot be asked at all."""
    try:
        said = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        if error.errno not in LACKS:
            raise
        return False
    return re.search(r"\bUP\b", said) is not None


def words(job_id: str | None, log: Path | None) -> str:
    """What Slurm says of a job that failed: the controller's fields, and its programs' lines in the log."""
    said = []
    if job_id:
        found = allocation.show(job_id)
        said += [" ".join(f"{name}={found[name]}" for name in SAID if name in found)]
    if log is not None and log.exists():
        said += dict.fromkeys(WORDS.findall(log.read_text(encoding="utf-8", errors="replace")))
    return "".join(f"\n    Slurm: {line}" for line in said if line)
