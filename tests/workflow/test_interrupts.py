"""The same command over and over on one study, and each time something else ends it or a part of it.

Whatever it was, no process stays behind, no device stays leased, nothing that was done is lost or done again.
The fixtures run the study and write down what they saw; each test reads one thing of that.
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from checkout import STUDY, Checkout, Done
from crewbench.devices import procfs
from crewbench.devices.inventory import slots
from crewbench.devices.lease import LeaseTimeout, lease
from processes import GONE_S, MARK, command, kill, marked, new_mark, wait_gone

pytestmark = pytest.mark.needs("setsid")

SNAKEMAKE = [
    *(str(Path(sys.executable).with_name("snakemake")), "--cores", "all", "--resources", "gpu=8"),
    *("--configfile", "study.json"),
]
TRIALS = [f"parallel__g2__a2__eager__zygote__base__r{n}" for n in range(1, 8)]
# Repeats run in this order, one at a time; each is there to be hit by something else.
DONE_FIRST, INTERRUPTED, TRIAL_KILLED, SHELL_KILLED, KILLED_LOADING, KILLED_GENERATING, ZYGOTE_KILLED = TRIALS
LONG = {
    **STUDY,
    "repeats": len(TRIALS),
    "generation": {"output_tokens": 400},  # a second or so in which a worker can be caught at it
    "runs": [{"mode": "parallel", "gpus": 2, "agents": 2}],
}
AFTER_TRIALS = {"tables": 1, "figures": 1, "report": 1}
LONGEST_S = 150.0
"""How long to wait for something that must come, on a busy machine."""


@dataclass
class Ended:
    """What was there once the command had ended."""

    code: int | None
    left: list[tuple[int, str]]
    scratch: list[str]
    devices_are_free: bool
    done: list[str]
    files: dict[str, bytes]
    text: str
    locked: bool | None = None
    """Whether the next one was refused until `--unlock`."""
    next_jobs: dict[str, int] | None = None
    """What the next one set out to do."""


class Study:
    """A checkout in which the same command is given again and again."""

    def __init__(self, place, scratch):
        self.checkout = Checkout.make(place, LONG)
        self.place, self.scratch = place, scratch
        self.runs = 0
        self.last: Ended | None = None

    def call(self, *words):
        """A call that is left to itself."""
        done = subprocess.run(
            [*SNAKEMAKE, *words],
            cwd=self.place,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    @property
    def environment(self):
        return {**self.checkout.environment, "CREWBENCH_LEASE_DIR": str(self.place / "leases")}

    @contextmanager
    def run(self, terminal=False):
        """The command, started and at work. What is left of it at the end is ended."""
        run = Run(self, terminal)
        try:
            locked = run.begins()
            if locked:
                run.ended()
                unlocked = self.call("--unlock")
                assert unlocked.code == 0, unlocked.text
                run.end()
                run = Run(self, terminal)
                assert not run.begins(), run.text
            if self.last is not None:
                self.last.locked, self.last.next_jobs = locked, run.jobs
            yield run
        finally:
            run.end()

    def files(self):
        """What the finished trials and the finished model left, by path."""
        results = self.place / "results"
        records = [*results.glob("trials/*/*/trial.json"), *results.glob("models/*/manifest.json")]
        found = (p for record in records for p in sorted(record.parent.rglob("*")) if p.is_file())
        return {str(p.relative_to(self.place)): p.read_bytes() for p in found}

    def devices_are_free(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CREWBENCH_LEASE_DIR", str(self.place / "leases"))
            with suppress(LeaseTimeout), lease(slots(8, 56), 8, exclusive_host=True, deadline_s=0):
                return True
        return False


class Run:
    """One call of the command. With `terminal` it has a controlling terminal of its own, as at a desk."""

    def __init__(self, study, terminal):
        self.study, self.mark = study, new_mark()
        study.runs += 1
        self.said = study.place / f"said-{study.runs}.txt"
        self.scratch = study.scratch / str(study.runs)
        self.scratch.mkdir()
        self.seen = set()
        self.keyboard, tty = pty.openpty() if terminal else (None, None)
        with self.said.open("wb") as file:
            self.process = subprocess.Popen(
                # Behind nohup or a shell's & tests ignore signals that a terminal's program heeds.
                ["env", "--default-signal", *(["setsid", "--ctty"] if terminal else []), *SNAKEMAKE],
                cwd=study.place,
                env={**study.environment, MARK: self.mark, "TMPDIR": str(self.scratch)},
                stdin=tty if terminal else subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=not terminal,
            )
        if tty is not None:
            os.close(tty)
        self.pidfd = os.pidfd_open(self.process.pid)

    # ---- what it says and does

    @property
    def text(self):
        return self.said.read_text(errors="replace")

    @property
    def jobs(self):
        return Done(0, self.text).jobs

    def until(self, look, what):
        """Look until there is something to see, and return it; AssertionError if it will not come."""
        end = time.monotonic() + LONGEST_S
        while True:
            over = bool(select.select([self.pidfd], [], [], 0.02)[0])
            found = look()
            if found:
                return found
            assert not over and time.monotonic() < end, f"{what}: not seen\n{self.text}{self.logs()}"

    def begins(self):
        """Wait until it says what it will do; returns whether it was refused because of a lock."""

        def look():
            return re.search(r"--unlock|^total +\d+$", self.text, re.MULTILINE)

        return self.until(look, "what it sets out to do")[0] == "--unlock"

    def logs(self):
        return self.study.checkout.logs()

    def worker(self, trial, stage):
        """The pid of the trial's second worker once at that stage, and not one from an earlier run's log."""

        def look():
            for log in (self.study.place / "results/logs/trial" / trial).glob("*.log"):
                for pid in re.findall(rf"worker1 \(pid (\d+)\): {stage}$", log.read_text(), re.MULTILINE):
                    if int(pid) in marked(self.mark):
                        return int(pid)
            return None

        return self.until(look, f"{trial}: worker1 at {stage}")

    @contextmanager
    def loading(self, trial):
        """The pid of a worker that is loading and does not get on with it: its accounts are closed."""
        new = self.until(lambda: {*self.scratch.glob("crewbench-*")} - self.seen, f"scratch of {trial}")
        with closed(new.pop() / "ledger.json"):
            yield self.worker(trial, "load")

    @contextmanager
    def generating(self, trial):
        """The pid of a worker in the middle of generating, which cannot come to the end of it: a sequence's
        memory can be given back only when this is over."""
        pid = self.worker(trial, "ready")
        while True:
            ledger = self.until(lambda: self.holding(pid), f"{trial}: worker1 generates")
            with closed(ledger):
                if self.holding(pid) == ledger:
                    self.seen.add(ledger.parent)
                    yield pid
                    return

    def holding(self, pid):
        """The accounts in which this worker has memory for a sequence, or None."""
        for ledger in self.scratch.glob("crewbench-*/ledger.json"):
            with suppress(FileNotFoundError):  # an earlier trial's, that goes just now
                for _, owner, _, what, mib in json.loads(ledger.read_text())["charges"]:
                    if owner == pid and what == "kv_cache" and mib > 0:
                        return ledger
        return None

    def above(self, pid):
        """The processes above a worker, by what they are."""
        names = ("zygote", "trial", "guardian", "launcher", "shell", "snakemake")
        found = {}
        for name in names:
            pid = found[name] = procfs.parent(pid)
        assert found["snakemake"] == self.process.pid
        assert "forkserver" in command(found["zygote"])
        return found

    # ---- its end

    def ended(self, within_s=60.0):
        """Wait for the end of the command and of all that it started; what is there then."""
        before = marked(self.mark)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(within_s)
        code = self.process.returncode
        left = wait_gone(before, GONE_S)
        left = [(pid, command(pid)) for pid in {*left, *marked(self.mark)}]
        files = self.study.files()
        done = sorted({Path(path).parts[2] for path in files if path.endswith("trial.json")})
        scratch = [p.name for p in self.scratch.glob("crewbench-*")]
        free = self.study.devices_are_free()
        return Ended(code, left, scratch, free, done, files, self.text)

    def end(self):
        """End what is left, and let go of everything."""
        kill(marked(self.mark))
        self.process.wait()
        self.hang_up()
        os.close(self.pidfd)

    def hang_up(self):
        keyboard, self.keyboard = self.keyboard, None
        if keyboard is not None:
            os.close(keyboard)


@contextmanager
def closed(ledger):
    """Nobody can write into the accounts meanwhile: their lock is taken, as another worker would take it."""
    fd = os.open(f"{ledger}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def interrupt(run, how):
    if how == "SIGKILL":
        run.process.kill()
    elif how == "hang-up":
        run.hang_up()
    else:
        os.write(run.keyboard, b"\x03")
        if how == "Ctrl-C twice":
            run.until(lambda: "Terminating processes on user request" in run.text, "the first Ctrl-C")
            os.write(run.keyboard, b"\x03")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    # A socket's address may have no more than 107 characters: no scratch in pytest's long directories.
    with tempfile.TemporaryDirectory() as scratch:
        yield Study(tmp_path_factory.mktemp("interrupts") / "crewbench", Path(scratch))


@pytest.fixture(scope="module")
def interrupted(study):
    """How the command was interrupted -> what was there then."""
    seen = {}

    def ended(how, run):
        seen[how] = study.last = run.ended()

    with study.run() as run:
        run.until(lambda: [p for p in marked(run.mark) if "model.py" in command(p)], "rule model at work")
        run.process.kill()
        ended("SIGKILL in model", run)
    for how in ("SIGKILL", "Ctrl-C", "Ctrl-C twice", "hang-up"):
        with study.run(terminal=how != "SIGKILL") as run, run.generating(INTERRUPTED):
            assert not study.devices_are_free(), "the test would not notice a lease"
            interrupt(run, how)
            ended(how, run)
    with study.run() as run:
        with run.generating(INTERRUPTED):
            run.process.terminate()
        ended("SIGTERM", run)
    return seen


INTERRUPTIONS = ["SIGKILL in model", "SIGKILL", "Ctrl-C", "Ctrl-C twice", "hang-up", "SIGTERM"]


@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_an_interrupted_workflow_leaves_no_process_and_holds_no_device(interrupted, how):
    ended = interrupted[how]
    assert ended.left == []
    assert ended.scratch == []
    assert ended.devices_are_free
    assert ended.code not in (0, None)


@pytest.mark.parametrize(
    ("how", "done"),
    [
        ("SIGKILL in model", []),
        *((how, [DONE_FIRST]) for how in INTERRUPTIONS[1:-1]),
        ("SIGTERM", [DONE_FIRST, INTERRUPTED]),
    ],
)
def test_a_trial_is_done_or_not_done_and_only_sigterm_lets_it_finish(interrupted, how, done):
    assert interrupted[how].done == done


def test_the_building_of_a_model_ends_with_the_workflow(interrupted):
    assert interrupted["SIGKILL in model"].files == {}


@pytest.fixture(scope="module")
def killed(study, interrupted):
    """A run in which one part after another is killed, and the run that makes up for it."""
    left = {}

    def strike(run, worker, name):
        """The processes of the trial that are there still; none of them can end by itself now."""
        above = run.above(worker)
        os.kill(above[name], signal.SIGKILL)
        trial = [worker, *(above[n] for n in ("zygote", "trial", "guardian", "launcher"))]
        left[name] = [(pid, command(pid)) for pid in wait_gone(trial, GONE_S)]
        kill(pid for pid, _ in left[name])  # the next one must have its turn

    with study.run() as run:
        with run.generating(TRIAL_KILLED) as worker:
            strike(run, worker, "trial")
        with run.generating(SHELL_KILLED) as worker:
            strike(run, worker, "shell")
        with run.loading(KILLED_LOADING) as worker:
            os.kill(worker, signal.SIGKILL)
            wait_gone([worker], GONE_S)
        with run.generating(KILLED_GENERATING) as worker:
            os.kill(worker, signal.SIGKILL)
            wait_gone([worker], GONE_S)
        with run.generating(ZYGOTE_KILLED) as worker:
            zygote = run.above(worker)["zygote"]
            os.kill(zygote, signal.SIGKILL)
            wait_gone([zygote], GONE_S)
        first = study.last = run.ended(LONGEST_S)
    with study.run() as run:
        study.last = run.ended(LONGEST_S)
    return {"first": first, "left": left, "last": study.last}


@pytest.mark.parametrize(
    ("how", "jobs"),
    [
        ("SIGKILL in model", {"model": 1, "trial": 7}),
        *((how, {"trial": 6}) for how in INTERRUPTIONS[1:-1]),
        ("SIGTERM", {"trial": 5}),
    ],
)
def test_the_same_command_then_does_only_what_is_missing(interrupted, killed, how, jobs):
    # Engines are checked after the trials.
    assert interrupted[how].next_jobs == {**jobs, "quality": 1, **AFTER_TRIALS}


@pytest.mark.parametrize(
    ("how", "needed"), [("SIGKILL", True), ("hang-up", True), ("Ctrl-C", False), ("SIGTERM", False)]
)
def test_unlocking_is_needed_only_where_snakemake_could_not_do_it_by_itself(interrupted, killed, how, needed):
    assert interrupted[how].locked is needed


@pytest.mark.parametrize("victim", ["trial", "shell"])
def test_a_killed_trial_or_shell_takes_all_of_the_trial_along(killed, victim):
    assert killed["left"][victim] == []


def test_the_other_trials_go_on_and_the_run_says_that_it_failed(killed):
    first = killed["first"]
    assert first.done == sorted({*TRIALS} - {TRIAL_KILLED, SHELL_KILLED})
    assert first.code != 0
    assert (first.left, first.scratch, first.devices_are_free) == ([], [], True)


def rows(study, trial, table):
    """The status of each agent or worker of a trial, with its error."""
    import pandas

    frame = pandas.read_csv(study.place / f"results/tables/{table}.csv", keep_default_na=False)
    frame = frame[frame["trial_id"] == trial]
    said = zip(frame["status"], frame["error"], strict=True)
    return dict(zip(frame[table.removesuffix("s")], said, strict=True))


@pytest.mark.parametrize(
    ("trial", "when"), [(KILLED_LOADING, "was at stage 'load'"), (KILLED_GENERATING, "ran")]
)
def test_a_killed_worker_is_a_row_that_says_so_and_its_neighbour_goes_on(study, killed, trial, when):
    said = ("error", f"worker worker1 was killed by SIGKILL while it {when}")
    assert rows(study, trial, "agents") == {"product_manager": ("ok", ""), "system_architect": said}
    assert rows(study, trial, "workers") == {"worker0": ("ok", ""), "worker1": said}


def test_a_killed_zygote_does_not_take_its_workers_along(study, killed):
    assert {status for status, _ in rows(study, ZYGOTE_KILLED, "agents").values()} == {"ok"}


def test_what_failed_and_nothing_else_is_made_up_for(study, killed):
    assert killed["first"].next_jobs == {"trial": 2, **AFTER_TRIALS}
    assert killed["first"].locked is False
    last = killed["last"]
    assert last.code == 0, last.text
    assert last.done == TRIALS
    assert study.call("-n").jobs == {}


@pytest.mark.parametrize("how", [*INTERRUPTIONS, "parts of it killed"])
def test_what_was_done_is_the_same_to_the_byte_at_the_end(interrupted, killed, how):
    before = {**interrupted, "parts of it killed": killed["first"]}[how].files
    assert {path: killed["last"].files.get(path) for path in before} == before
