"""Whatever is killed first, nothing of a trial survives it."""

import os
import signal
import subprocess
import sys

import pytest

from crewbench.devices import procfs
from processes import GONE_S, MARK, kill, marked, new_mark, wait_gone

# A trial that starts a child in a session of its own, which starts an orphan of its own: the worst case.
PROGRAM = """
import os, subprocess, sys, time
from crewbench.execute.guardian import supervised

def body():
    sleep = "import time; time.sleep(600)"
    child = f"import subprocess,sys; subprocess.Popen([sys.executable, '-c', '{sleep}']); "
    child += f"print('up', flush=True); {sleep}"
    p = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
    p.stdout.readline()
    print("pids", os.getppid(), os.getpid(), p.pid, flush=True)
    if sys.argv[1:] == ["finish"]:
        return 7
    time.sleep(600)
    return 0

sys.exit(supervised(body))
"""


# A workflow that starts the rest through a shell, as Snakemake does. `exit` keeps both shells in between.
WORKFLOW = ["sh", "-c", 'export CREWBENCH_WORKFLOW_PID=$$; sh -c "$0" "$@"; exit $?', '"$@"; exit $?', "sh"]


def environment(**added):
    env = {name: value for name, value in os.environ.items() if name != "CREWBENCH_WORKFLOW_PID"}
    return {**env, "PYTHONPATH": os.pathsep.join(sys.path), **added}


class Trial:
    """A launcher with its guardian, trial and the trial's children, all up; with `workflow`, below one."""

    def __init__(self, *args, workflow=False):
        self.mark = new_mark()
        self.launcher = subprocess.Popen(
            [*(WORKFLOW if workflow else []), sys.executable, "-c", PROGRAM, *args],
            env=environment(**{MARK: self.mark}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        line = self.launcher.stdout.readline().split()
        assert line[0] == "pids"
        self.guardian, self.trial, self.child = map(int, line[1:])
        self.all = marked(self.mark)

    def survivors(self, expected_gone=None):
        """The launcher's exit code, and who is left; what is left is ended."""
        self.launcher.stdout.close()
        code = self.launcher.wait(GONE_S)
        left = wait_gone(self.all if expected_gone is None else expected_gone, GONE_S)
        kill(marked(self.mark))
        return code, left


def test_all_five_processes_are_up_before_anything_is_killed():
    trial = Trial()
    assert len(trial.all) == 5  # launcher, guardian, trial, child, orphan-to-be
    trial.launcher.kill()
    trial.survivors()


@pytest.mark.parametrize("victim", ["launcher", "guardian", "trial"])
def test_killing_one_process_leaves_none_and_is_no_success(victim):
    trial = Trial()
    os.kill(trial.launcher.pid if victim == "launcher" else getattr(trial, victim), signal.SIGKILL)
    # Without a guardian a trial's children end by watching it, which these do not: see the workers' tests.
    own = [trial.launcher.pid, trial.trial] if victim == "guardian" else None
    code, survivors = trial.survivors(own)
    assert survivors == []
    assert code != 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_launcher_ends_everything_and_shows_in_the_exit_code(number):
    trial = Trial()
    trial.launcher.send_signal(number)
    code, survivors = trial.survivors()
    assert survivors == []
    assert code == 128 + number


@pytest.mark.parametrize("victim", ["workflow", "shell"])
def test_the_end_of_the_workflow_or_of_a_shell_between_ends_the_trial(victim):
    trial = Trial(workflow=True)
    assert len(trial.all) == 7
    shell = procfs.parent(procfs.parent(trial.guardian))
    assert procfs.parent(shell) == trial.launcher.pid
    os.kill(shell if victim == "shell" else trial.launcher.pid, signal.SIGKILL)
    code, survivors = trial.survivors()
    assert survivors == []
    assert code != 0


def test_a_trial_that_is_not_below_its_workflow_any_more_ends():
    """Its shell was killed before anybody could watch it, and the trial has another parent now."""
    workflow = subprocess.Popen(["sleep", "600"])
    program = "import sys, time; from crewbench.execute.guardian import supervised; "
    program += "sys.exit(supervised(lambda: time.sleep(600)))"
    env = environment(CREWBENCH_WORKFLOW_PID=str(workflow.pid))
    try:
        done = subprocess.run([sys.executable, "-c", program], env=env, stderr=subprocess.PIPE, timeout=60)
    finally:
        workflow.kill()
        workflow.wait()
    assert done.returncode != 0
    assert b"a process above it ended" in done.stderr


def test_a_trial_that_finishes_gives_its_exit_code_and_its_leftovers_are_ended():
    trial = Trial("finish")
    code, survivors = trial.survivors()
    assert survivors == []
    assert code == 7
