"""A real trial that is stopped at a line of its log, to be disturbed there."""

from __future__ import annotations

import os
import re

from crewbench.devices import procfs
from crewbench.devices.inventory import slots
from crewbench.devices.lease import lease
from crewbench.execute.guardian import children
from made_study import Result
from processes import GONE_S, MARK, command, kill, marked, new_mark, wait_gone


def hard(mode, **options):
    """A config whose steps take long enough to be interrupted."""
    return {
        "warm_rounds": 1,
        "generation": {"output_tokens": 500},
        "runs": [{"mode": mode, "agents": 2, **options}],
    }


class Running:
    """A trial that has come to a line of its log."""

    def __init__(self, study, until, **environment):
        self.study = study
        self.trial_id = study.trials[0]
        self.mark = new_mark()
        self.leases = study.place / "leases"
        self.process = study.start(
            self.trial_id, **{MARK: self.mark, "CREWBENCH_LEASE_DIR": str(self.leases), **environment}
        )
        self.log = []
        self.line = self.read_until(until)

    def read_until(self, pattern):
        for line in self.process.stderr:
            self.log.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError("".join(self.log))

    @property
    def worker(self):
        return int(re.search(r"pid (\d+)", self.line)[1])

    def all(self):
        return marked(self.mark)

    def named(self, word):
        """The one process of the trial whose command line has this word."""
        found = [p for p in self.all() if word in command(p)]
        # A child that has not become another program yet looks like its parent.
        (pid,) = (p for p in found if procfs.parent(p) not in found)
        return pid

    @property
    def harness(self):
        """The pids of launcher, guardian and trial, each the child of the one before."""
        pids = [self.process.pid]
        for _ in range(2):
            (below,) = (p for p in children(pids[-1]) if "trial.py" in command(p))
            pids.append(below)
        return dict(zip(("launcher", "guardian", "trial"), pids, strict=True))

    def finish(self):
        """Exit code and survivors once the launcher has ended; survivors are ended."""
        before = self.all()
        self.log += self.process.stderr.readlines()
        self.process.stderr.close()
        code = self.process.wait(60)
        left = wait_gone(before, GONE_S)
        left += (late := marked(self.mark))
        kill(late)
        return code, [(pid, command(pid)) for pid in left]

    def result(self):
        return Result(self.study.dir(self.trial_id), "".join(self.log))

    def devices_are_free(self):
        os.environ["CREWBENCH_LEASE_DIR"] = str(self.leases)
        try:
            with lease(slots(8, 56), 8, exclusive_host=True, deadline_s=1):
                return True
        finally:
            del os.environ["CREWBENCH_LEASE_DIR"]
