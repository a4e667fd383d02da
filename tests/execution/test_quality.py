"""An engine that computes something else than the checkpoint is seen; a faithful one passes in every type."""

import json
import os
import sys
import time
from dataclasses import asdict

import pytest

import wrong_engine
from crewbench import quality
from crewbench.devices.inventory import slots
from crewbench.engines import ENGINES
from crewbench.execute.worker import Job
from crewbench.observation import SideFailed, Sides, along, answers, measure
from crewbench.quality import Agreement
from crewbench.records import Status
from crewbench.trial import AgentSpec, TaskSpec
from made_study import SCRIPTS, run

DEVICES = slots(1, 1024)
AGENTS = [AgentSpec(f"agent{i}", f"Role {i}", f"Do {i} well", "Years of it") for i in range(4)]
TASK = TaskSpec("explain", "Explain what breaks first with {what}", "A paragraph")
TALKS = quality.conversations(AGENTS, TASK, {"what": "eight agents"}, seed=1)
WRONG = [
    wrong_engine.Scales,
    wrong_engine.RoundsItsWeights,
    wrong_engine.Forgets,
    wrong_engine.Penalises,
    wrong_engine.SaysNothing,
]
MADE = {
    cls.__name__: wrong_engine.info(cls)
    for cls in (*WRONG, wrong_engine.ShowsIds, wrong_engine.ScalesAndShowsIds)
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What rule `model` leaves, with the weights stored in bfloat16: rounding them again costs nothing."""
    place = tmp_path_factory.mktemp("model")
    spec = '{"kind": "synthetic", "shape": "tiny", "seed": 0, "dtype": "bfloat16", "model_id": "tiny"}'
    run(sys.executable, SCRIPTS / "model.py", "--spec", spec, "--out", place, cwd=place)
    return place


@pytest.fixture
def judged(model, monkeypatch):
    """engine, dtype -> (numbers, judgement), all sides in this process."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):  # a side pins itself; be as before afterwards
        monkeypatch.setenv(name, os.environ.get(name, ""))
    path = model / "weights"

    def judge(engine, dtype):
        if engine in MADE:
            monkeypatch.setitem(ENGINES, engine, MADE[engine])
        job = Job(
            worker="quality", engine=engine, model_path=str(path), dtype=dtype, devices=DEVICES,
            concurrency=1, threads=1, length="fixed", tokens=16, step_timeout_s=300.0, storage="",
            zygote=False,
        )  # fmt: skip
        prompts, seen = answers(job, TALKS)
        lines = [(ids, o.output_ids) for ids, o in zip(prompts, seen, strict=True)]
        plain = along(path, dtype, DEVICES, 1, lines)
        exact = along(path, "float32", DEVICES, 1, lines, "eager")
        numbers = quality.compare(seen, plain, exact)
        record = {"check": {"dtype": dtype}, "status": Status.OK, "unseen": "", "error": ""}
        return numbers, quality.judge({**record, "numbers": asdict(numbers)})

    return judge


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_eager_agrees_in_every_type_and_is_no_further_off_than_a_plain_forward(judged, dtype):
    numbers, judgement = judged("eager", dtype)
    assert judgement.agreement == Agreement.AGREES
    assert (numbers.prompts, numbers.tokens) == (3, 48)
    if dtype == "float32":
        assert numbers.logit_error < quality.FLOOR / 5
    else:
        assert numbers.logit_error == pytest.approx(numbers.plain_logit_error, rel=0.3)
        assert numbers.logprob_error == pytest.approx(numbers.plain_logprob_error, rel=0.6)


def test_a_coarser_type_is_further_off_and_that_is_what_is_measured(judged):
    errors = [judged("eager", dtype)[0].logit_error for dtype in ("float32", "float16", "bfloat16")]
    assert errors[0] < errors[1] / 100 < errors[2] / 300


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", [cls.__name__ for cls in WRONG])
def test_an_engine_that_computes_something_else_is_seen(judged, engine, dtype):
    numbers, judgement = judged(engine, dtype)
    assert judgement.agreement == Agreement.DIFFERS, numbers


def test_right_logits_and_another_choice_are_told_apart_from_wrong_logits(judged):
    numbers, judgement = judged("Penalises", "float32")
    assert numbers.logit_error < quality.FLOOR
    assert "below its own best" in judgement.reason
    assert "its logits are off" in judged("Scales", "float32")[1].reason


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probabilities_of_the_ids_alone_tell_a_wrong_engine_from_a_right_one(judged, dtype):
    numbers, judgement = judged("ShowsIds", dtype)
    assert judgement.agreement == Agreement.AGREES
    assert numbers.logit_error is numbers.logit_max is numbers.logit_mean is numbers.own_gap is None
    assert judged("ScalesAndShowsIds", dtype)[1].agreement == Agreement.DIFFERS


# Each side alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "argument", "limit_s", "status", "said"),
    [
        (os._exit, 3, 30.0, Status.ERROR, "ended with exit code 3"),
        (int, "no number", 30.0, Status.ERROR, "ValueError: invalid literal"),
        (time.sleep, 600.0, 0.5, Status.TIMEOUT, "not done within 0.5 s"),
    ],
)
def test_a_side_that_fails_is_a_status_with_its_reason(function, argument, limit_s, status, said):
    with pytest.raises(SideFailed, match=said) as caught:
        Sides(DEVICES, limit_s, ()).run(function, argument)
    assert caught.value.failed.status == status


# The script ---------------------------------------------------------------------------------------


def check_alone(model, out, *words):
    command = (sys.executable, SCRIPTS / "quality.py", "--model", model, "--out", out, *words)
    done = run(*command, cwd=out.parent)
    return done.stdout, json.loads((out / quality.RECORD).read_text())


def test_the_script_says_in_one_line_whether_an_engine_agrees_and_leaves_the_numbers(model, tmp_path):
    said, record = check_alone(model, tmp_path / "out", "--dtype", "bfloat16")
    assert said.startswith("eager__d1: agrees; 3 prompts, 96 tokens") and said.count("\n") == 1
    assert record["numbers"]["tokens"] == sum(map(len, record["output_ids"])) == 96
    assert quality.read(tmp_path / "out") == record
    assert sorted(os.listdir(tmp_path / "out")) == [quality.RECORD]


def test_an_engine_that_shows_nothing_is_not_observable_and_is_not_even_started(model, tmp_path):
    said, record = check_alone(model, tmp_path / "out", "--engine", "transformers-serve")
    assert said == "transformers-serve__d1: not observable (its server refuses logprobs and takes no ids)\n"
    assert record["numbers"] is None and record["output_ids"] == []


def test_an_engine_that_needs_a_gpu_is_refused_where_there_is_none(model, tmp_path):
    command = (sys.executable, SCRIPTS / "quality.py", "--model", model, "--out", tmp_path / "out")
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = run(*command, "--engine", "compiled", cwd=tmp_path, check=False, env=hidden)
    assert done.returncode == 1 and "engine compiled needs a GPU" in done.stderr
    assert not (tmp_path / "out" / quality.RECORD).exists()


def test_measuring_an_engine_that_fails_to_load_gives_its_error(model, tmp_path):
    check = quality.Check(
        engine="eager", options={}, devices=1, model_dir="", dtype="float32", device_kind="slot",
        exclusive=True, threads=1, load_timeout_s=60.0, step_timeout_s=60.0, conversations=TALKS,
    )  # fmt: skip
    found = measure(check, tmp_path / "nowhere", DEVICES, tmp_path)
    assert found["status"] == Status.ERROR and "nowhere" in found["error"]
    assert found["numbers"] is None
