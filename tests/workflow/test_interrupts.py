"""The workflow is interrupted in the middle of a trial: nothing stays behind, only what is missing reruns."""

import os
import re
import signal
import subprocess
from contextlib import suppress

import pytest

from checkout import STUDY
from crewbench.devices.inventory import slots
from crewbench.devices.lease import lease
from processes import MARK, command, marked, new_mark, wait_gone

LONG = "cooperative__g1__a2__eager__zygote__long__r1"
LONG_STUDY = {
    **STUDY,
    "variants": {"long": {"output_tokens": 400}},
    "runs": [*STUDY["runs"], {"mode": "cooperative", "agents": 2, "variant": "long", "warm_rounds": 3}],
}
AFTER_TRIALS = {"tables": 1, "figures": 1, "report": 1}


class Running:
    """A workflow with one long trial to do, at the moment when that trial's worker is ready."""

    def __init__(self, checkout) -> None:
        self.checkout, self.mark = checkout, new_mark()
        self.leases = checkout.place / "leases"
        checkout.study = LONG_STUDY
        planned = checkout.snakemake("-n").text
        log = checkout.place / re.search(rf"results/logs/trial/{LONG}/\w+\.log", planned)[0]
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self.process = subprocess.Popen(
            checkout.command(),
            cwd=checkout.place,
            env={**checkout.environment, MARK: self.mark, "CREWBENCH_LEASE_DIR": str(self.leases)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        follow = ["tail", "--follow=name", "--retry", "--lines=+1", f"--pid={self.process.pid}", str(log)]
        with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as tail:
            seen = []
            for line in tail.stdout:
                seen.append(line)
                if re.search(r"worker .*: ready", line):
                    break
            else:
                raise AssertionError("".join(seen))
            tail.terminate()

    def finish(self):
        """What is left once snakemake has ended; survivors are ended."""
        before = marked(self.mark)
        self.process.wait(120)
        left = wait_gone(before, 30)
        for pid in marked(self.mark):
            left.append(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return [(pid, command(pid)) for pid in left]

    def all_devices_are_free(self, monkeypatch):
        monkeypatch.setenv("CREWBENCH_LEASE_DIR", str(self.leases))
        with lease(slots(8, 56), 8, exclusive_host=True, deadline_s=5):
            return True


def interrupt(process, how):
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "Ctrl-C twice":
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, getattr(signal, how))


@pytest.mark.parametrize("how", ["Ctrl-C", "Ctrl-C twice", "SIGHUP", "SIGKILL"])
def test_an_interrupted_workflow_leaves_no_process_no_lease_and_only_its_trial_to_do(copy, how, monkeypatch):
    done = {t["trial_id"]: t["finished_wall_s"] for t in copy.trials()}
    running = Running(copy)
    interrupt(running.process, how)
    assert running.finish() == []
    assert running.process.returncode != 0
    assert running.all_devices_are_free(monkeypatch)
    assert not list((copy.place / "results/trials" / LONG).glob("*/trial.json"))
    copy.snakemake("--unlock")
    assert copy.wanted() == {"trial": 1, **AFTER_TRIALS}
    if how == "SIGKILL":
        copy.run()
        after = {t["trial_id"]: t["finished_wall_s"] for t in copy.trials()}
        assert {i: after[i] for i in done} == done, "what was done is not done again"
        assert LONG in after
        assert copy.wanted() == {}


def test_a_terminated_workflow_lets_the_running_trial_finish_and_starts_nothing_more(copy, monkeypatch):
    running = Running(copy)
    interrupt(running.process, "SIGTERM")
    assert running.finish() == []
    assert running.process.returncode != 0
    assert running.all_devices_are_free(monkeypatch)
    assert list((copy.place / "results/trials" / LONG).glob("*/trial.json"))
    assert copy.wanted() == AFTER_TRIALS
