"""Mode `served` in the matrix: its Deployments, its usual start, its skips, and what must be installed."""

import sys

import pytest

from crewbench import matrix
from crewbench.config import load
from crewbench.extras import EXTRAS, interpreter, missing
from crewbench.modes.served import deployment
from crewbench.problems import ConfigError
from crewbench.trial import Cell


@pytest.fixture
def build(root):
    """Runs -> Matrix, for slots or for a machine of four GPUs."""

    def make(*runs, kind="gpu", variants=None):
        config = {"devices": {"kind": kind}, "repeats": 2, "variants": variants or {}, "runs": list(runs)}
        return matrix.build(load(config, root), root, 4)

    return make


def cell(gpus, agents, **options):
    return Cell("served", gpus, agents, "vllm", "process", "v", options)


# ---------------------------------------------------------------- Deployments


def test_tensor_is_one_server_over_all_devices_for_all_agents():
    made = deployment(cell(4, 8))
    assert [(w.devices, w.concurrency, w.runner) for w in made.workers] == [((0, 1, 2, 3), 8, "server")]


def test_replicas_are_a_server_on_each_device_and_each_takes_its_share_of_the_agents():
    made = deployment(cell(3, 8, layout="replicas"))
    assert [(w.devices, w.concurrency) for w in made.workers] == [((0,), 3), ((1,), 3), ((2,), 3)]
    assert {step.worker for step in made.steps} == {("server0", "server1", "server2")}
    assert sum(w.concurrency for w in made.workers) >= len(made.steps)


# ---------------------------------------------------------------- starts and skips


def test_a_server_starts_as_a_new_process_where_the_config_names_no_start(build):
    made = build({"mode": "served", "engine": "vllm"}, {"mode": "parallel", "engine": "eager"})
    assert {(t.cell.mode, t.cell.start) for t in made} == {("served", "process"), ("parallel", "zygote")}


TENSOR = {"mode": "served", "gpus": 2, "engine": "transformers-serve"}
OPTIONS = {
    "replicas": {"layout": "replicas"},
    "port": {"port": 8123},
    "both": {"layout": "replicas", "port": 8123},
    "loader": {"loader": "parallel"},
    "eager": {"enforce_eager": True},
}


@pytest.mark.parametrize(
    "run, reason",
    [
        ({"mode": "served", "engine": "eager"}, "engine eager cannot be held so"),
        ({"mode": "shared", "engine": "vllm"}, "engine vllm cannot be held so"),
        ({"mode": "served", "engine": "vllm", "start": "zygote"}, "start may be process or disk, not zygote"),
        (TENSOR, "it puts a copy on one device: use layout replicas"),
        ({**TENSOR, "agents": 1, "variant": "replicas"}, "2 servers for 1 agents"),
        ({**TENSOR, "variant": "both"}, "port is for one worker: two servers cannot listen on it"),
        ({"mode": "served", "engine": "vllm", "variant": "loader"}, "engine vllm has no option loader"),
        (
            {"mode": "served", "engine": "transformers-serve", "variant": "eager"},
            "engine transformers-serve has no option enforce_eager",
        ),
        ({"mode": "parallel", "variant": "replicas"}, "mode parallel has no option layout"),
        ({"mode": "shared", "variant": "port"}, "engine eager has no option port"),
    ],
)
def test_a_cell_that_cannot_be_served_so_is_skipped_with_the_reason(build, run, reason):
    made = build({"mode": "sequential"}, run, variants=OPTIONS)
    (skipped,) = made.skipped
    assert reason in skipped.reason
    assert {t.cell.mode for t in made} == {"sequential"}


def test_vllm_needs_a_gpu(build):
    made = build({"mode": "sequential"}, {"mode": "served", "engine": "vllm"}, kind="slots")
    assert [s.reason for s in made.skipped] == ["engine vllm needs a GPU"]


@pytest.mark.parametrize("run", [{**TENSOR, "variant": "replicas"}, {**TENSOR, "gpus": 1, "variant": "port"}])
def test_what_can_be_served_so_is_not_skipped(build, run):
    assert build(run, variants=OPTIONS).skipped == []


# ---------------------------------------------------------------- extras


@pytest.fixture
def without_vllm():
    if not missing("vllm"):
        pytest.skip("vLLM is installed here")


def vllm_and_eager(build):
    return build({"mode": "served", "engine": "vllm"}, {"mode": "sequential"})


def test_a_missing_extra_is_an_error_that_names_the_command(build, without_vllm, tmp_path):
    with pytest.raises(ConfigError) as raised:
        matrix.check_extras(vllm_and_eager(build), tmp_path)
    (problem,) = raised.value.problems
    assert str(problem) == "engine vllm: needs packages that are not installed: run `make install-vllm`"


def test_it_is_no_error_where_all_such_trials_are_done(build, without_vllm, tmp_path):
    made = vllm_and_eager(build)
    trials = [t for t in made if t.cell.engine == "vllm"]
    assert len(trials) == 2
    for trial in trials:
        with pytest.raises(ConfigError):
            matrix.check_extras(made, tmp_path)
        (tmp_path / trial.dir).mkdir(parents=True)
        (tmp_path / trial.dir / "trial.json").write_text("{}")
    matrix.check_extras(made, tmp_path)


def test_what_needs_no_extra_is_never_refused(build, tmp_path):
    matrix.check_extras(build({"mode": "sequential"}), tmp_path)


def test_an_extra_with_an_environment_of_its_own_runs_there(tmp_path):
    own = tmp_path / ".venv-vllm/bin/python"
    assert interpreter("vllm", tmp_path) == sys.executable
    own.parent.mkdir(parents=True)
    own.touch()
    assert interpreter("vllm", tmp_path) == str(own)
    assert not missing("vllm", tmp_path)
    assert interpreter("serving", tmp_path) == sys.executable


def test_each_extras_command_is_in_the_makefile(root):
    makefile = (root / "Makefile").read_text()
    for extra in EXTRAS.values():
        assert f"\n{extra.install.removeprefix('make ')}:" in makefile
