"""Wrong input ends before any job, with the thing, the remedy and an exit code."""

import json

import pytest

from checkout import STUDY, Checkout
from crewbench.extras import missing


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout.make(tmp_path_factory.mktemp("checkout") / "crewbench")


def refused(checkout, *words, configfile="study.json"):
    done = checkout.snakemake(*words, configfile=configfile)
    assert done.code != 0
    assert "Traceback" not in done.text
    assert not (checkout.place / "results").exists(), "no job may have started"
    return done.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"runs": [{"mode": "paralel"}], "seed": "x"},
            ['seed: found "x"; must be a whole number', "runs[0].mode", "did you mean 'parallel'?"],
        ),
        ({"runs": []}, ["runs: found []", "0 trials"]),
        ({"runs": [{"mode": "shared", "gpus": 2}]}, ["leave 0 trials", "runs on one GPU, not on 2"]),
        ({"runs": [{"mode": "parallel", "gpus": 9}]}, ["runs[0].gpus: found 9; must be at most 8"]),
        (
            {"model": {"kind": "local", "path": "models/nowhere"}},
            ['model.path: found "models/nowhere"', "put the checkpoint there, or correct the path"],
        ),
        ({"devices": {"slot_memory_mib": -1}}, ["devices.slot_memory_mib: found -1; must be at least 1"]),
        ({"devices": {"memory_budget_gib": -46}}, ["devices.memory_budget_gib: found -46"]),
        (
            {"runs": [{"mode": "shared", "agents": 9}]},
            ["runs[0].agents: found 9; must be at most 8, the number in config/agents.yaml"],
        ),
        ({"repeats": 0}, ["repeats: found 0; must be at least 1"]),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_named_with_the_remedy(checkout, change, said):
    checkout.study = {**STUDY, **change}
    text = refused(checkout)
    for words in said:
        assert words in text


@pytest.mark.skipif(not missing("vllm"), reason="vLLM is installed here")
def test_an_engine_that_is_not_installed_is_named_with_the_command_that_brings_it(checkout):
    checkout.study = {
        **STUDY,
        "devices": {"kind": "gpu", "gpus": 1},
        "runs": [{"mode": "sequential"}, {"mode": "served", "engine": "vllm"}],
    }
    text = refused(checkout)
    assert "engine vllm: needs packages that are not installed: run `make install-vllm`" in text


def test_a_wrong_value_is_named_even_when_everything_else_is_quiet(checkout):
    checkout.study = {**STUDY, "repeats": "many"}
    assert 'repeats: found "many"; must be a whole number' in refused(checkout, "--quiet", "all")


def test_a_wrong_value_on_the_command_line_is_named(checkout):
    checkout.study = STUDY
    text = refused(checkout, "--config", "generation={output_tokens: few}")
    assert 'generation.output_tokens: found "few"; must be a whole number' in text


def test_fewer_gpus_than_a_trial_needs_are_refused_and_not_silently_given(checkout):
    checkout.study = STUDY
    text = refused(checkout, "--resources", "gpu=1")
    assert "--resources gpu: found 1; must be at least 2 for parallel__g2__a2__eager__zygote__base" in text


def test_a_key_given_twice_in_a_config_file_is_refused_with_its_lines(checkout):
    (checkout.place / "twice.yaml").write_text("repeats: 1\nwarm_rounds: 0\nrepeats: 2\n")
    text = refused(checkout, configfile="twice.yaml")
    assert "line 3: key 'repeats' stands on line 1 already" in text


def test_broken_yaml_in_the_embedded_config_is_reported_with_its_line(checkout, tmp_path):
    broken = checkout.copy(tmp_path / "broken")
    path = broken.place / "config/config.yaml"
    path.write_text("seed: 1\nruns: [\nrepeats: 3\n")
    text = refused(broken, configfile=None)
    assert "config/config.yaml has 1 problem" in text
    assert "line 4, column 1" in text and "begins on line 2" in text


def test_a_task_that_no_file_describes_is_named(checkout, tmp_path):
    other = checkout.copy(tmp_path / "other")
    other.study = STUDY
    other.edit("config/tasks.yaml", "\nexplain:", "\nexplained:")
    text = refused(other)
    assert (
        "config/tasks.yaml: explain: task is missing: mode shared gives it to agent product_manager" in text
    )
