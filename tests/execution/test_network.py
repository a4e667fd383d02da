"""A run opens no socket to anywhere but this host, and leaves the home directory alone."""

import re
import shutil

import pytest


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    "run, sees",
    [
        ({"mode": "shared"}, "AF_UNIX"),  # the zygote's own socket
        ({"mode": "served", "engine": "transformers-serve"}, 'inet_addr("127.0.0.1")'),  # the server's
        pytest.param({"mode": "actors"}, "::ffff:127.0.0.1", marks=pytest.mark.needs("ray")),  # raylet's
    ],
    ids=["zygote", "server", "ray"],
)
def test_a_trial_opens_nothing_but_local_sockets(small_study, tmp_path, run, sees):
    strace = shutil.which("strace")
    study = small_study({"warm_rounds": 0, "runs": [{"agents": 2, **run}]})
    log, home = tmp_path / "strace.log", tmp_path / "home"
    home.mkdir()
    wrap = (strace, "-f", "--seccomp-bpf", "-e", "trace=bind,connect,sendto,sendmsg", "-o", str(log))
    result = study.run(study.trials[0], wrap, HOME=str(home))
    assert result.trial["status"] == "ok"
    calls = log.read_text()
    assert sees in calls  # the trace did see the trial
    families = set(re.findall(r"sa_family=(AF_\w+)", calls))
    remote = [
        line
        for line in calls.splitlines()
        if re.search(r"sa_family=AF_INET6?\b", line) and not re.search(r'"(::ffff:)?127\.|"::1"', line)
    ]
    assert remote == []
    assert families <= {"AF_UNIX", "AF_INET", "AF_INET6", "AF_UNSPEC", "AF_NETLINK"}
    assert list(home.rglob("*")) == []


def test_a_trial_writes_nothing_into_the_home_directory(small_study, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    study = small_study({"warm_rounds": 0, "runs": [{"mode": "shared", "agents": 2}]})
    result = study.run(study.trials[0], HOME=str(home))
    assert result.trial["status"] == "ok"
    assert list(home.rglob("*")) == []
