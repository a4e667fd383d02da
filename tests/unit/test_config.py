"""The config: what is accepted, and what a person is told about what is not."""

import json
import re
import textwrap
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from crewbench.config import Config, load, read_crew
from crewbench.modes import MODES
from crewbench.problems import ConfigError, read_yaml

KNOWN_MODES = ", ".join(MODES)
EXTENSIONS = sorted((Path(__file__).parents[2] / "config/extensions").glob("*.yaml"))
RUNS = [{"mode": "shared", "agents": 2}]


def problems(data, root="."):
    """The lines of the error that `data` gives."""
    with pytest.raises(ConfigError) as caught:
        load(data, root)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.fixture
def study(tmp_path, root):
    """A directory with a config of one's own beside the project's crew; gives (directory, mapping)."""
    for name in ("agents", "tasks"):
        (tmp_path / f"{name}.yaml").write_text((root / f"config/{name}.yaml").read_text())
    return tmp_path, {"crew": {"agents": "agents.yaml", "tasks": "tasks.yaml"}, "runs": RUNS}


@pytest.mark.parametrize("name", ["config.yaml", "mistral-7b-synthetic.yaml"])
def test_the_shipped_configs_load(root, name):
    assert load(root / "config" / name, root).runs


@pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda path: path.stem)
def test_every_extension_is_a_study_when_laid_over_the_one_it_names(root, extension):
    said = extension.read_text(encoding="utf-8")
    files = re.search(r"--configfile (.+)", said)[1].split()
    merged = yaml.safe_load((root / "config/config.yaml").read_text())
    for name in files:
        update_config(merged, yaml.safe_load((root / name).read_text()))
    assert root / files[-1] == extension
    assert [run.mode for run in load(merged, root).runs] == [r["mode"] for r in yaml.safe_load(said)["runs"]]


def test_the_study_with_local_weights_only_lacks_the_weights(root, tmp_path):
    for name in ("agents.yaml", "tasks.yaml"):
        (tmp_path / "config").mkdir(exist_ok=True)
        (tmp_path / "config" / name).write_text((root / "config" / name).read_text())
    found = problems(root / "config/mistral-7b.yaml", tmp_path)
    assert len(found) == 1
    assert found[0].startswith("model.path: ")
    assert "must be an existing directory" in found[0]


def test_the_embedded_study_has_every_mode_that_needs_no_extra_most_from_a_zygote(root):
    config = load(root / "config/config.yaml", root)
    assert {run.mode for run in config.runs} == set(MODES) - {"served", "actors"}
    assert config.repeats == 3 and config.warm_rounds == 2
    starts = [start for run in config.runs for start in run.start or ("zygote",)]
    assert 1 <= sum(s == "process" for s in starts) <= 2
    assert "disk" not in starts


def test_what_is_not_said_has_a_default(root):
    config = load({"runs": [{"mode": "shared"}]}, root)
    assert config.repeats == 3
    assert config.runs[0].gpus == (1,) and config.runs[0].start is None
    assert config.variants["base"].options == {}


def test_every_problem_of_a_file_is_listed_at_once_with_key_value_and_remedy(root):
    bad = {
        "repeats": "many",
        "exclusive": "perhaps",
        "modle": {"kind": "synthetic"},
        "generation": {"length": "fixd", "output_token": 8},
        "devices": {"slots": 0, "slot_memory_mib": -5},
        "sampler": {"hz": True},
        "timeouts": {"step_s": "inf"},
        "crew": {"agents": "config/agent.yaml"},
        "variants": {"small memory": {}},
        "runs": [{"mode": "paralel"}, {"gpus": [2]}, {"mode": "shared", "start": "warm", "gpus": [1, 1]}],
    }
    assert problems(bad, root) == [
        'repeats: found "many"; must be a whole number',
        'exclusive: found "perhaps"; must be true or false',
        "generation.length: found \"fixd\"; must be one of fixed, natural; did you mean 'fixed'?",
        "generation.output_token: unknown key; did you mean 'output_tokens'?",
        "devices.slots: found 0; must be at least 1",
        "devices.slot_memory_mib: found -5; must be at least 1",
        "sampler.hz: found true; must be a number",
        'timeouts.step_s: found "inf"; must be a finite number',
        'variants.small memory: found "small memory"; must be lower-case letters and digits, with single '
        "hyphens between",
        f"runs[0].mode: found \"paralel\"; must be one of {KNOWN_MODES}; did you mean 'parallel'?",
        f"runs[1].mode: is missing: one of {KNOWN_MODES}",
        "runs[2].gpus: found [1, 1]; must not name anything twice: 1",
        'runs[2].start[0]: found "warm"; must be one of disk, process, zygote',
        "modle: unknown key; did you mean 'model'?",
        f"{root}/config/agent.yaml: the file: does not exist in {root}/config",
    ]


def test_problems_between_sections_are_listed_beside_those_inside_one(root):
    found = problems(
        {
            "repeats": -1,
            "devices": {"kind": "slots", "slots": 4},
            "variants": {"small": {"memory_mib": 20}},
            "runs": [
                {"mode": "paralel"},
                {"mode": "parallel", "gpus": 8, "variant": ["base", "smal"]},
                {"mode": "shared", "agents": [2, 9]},
            ],
        },
        root,
    )
    assert found == [
        "repeats: found -1; must be at least 1",
        f"runs[0].mode: found \"paralel\"; must be one of {KNOWN_MODES}; did you mean 'parallel'?",
        "runs[1].variant: found \"smal\"; must be one of base, small (see variants); did you mean 'small'?",
        "runs[1].gpus: found 8; must be at most 4, the number in devices.slots: "
        "lower it or raise devices.slots",
        "runs[2].agents: found 9; must be at most 8, the number in config/agents.yaml: "
        "lower it or add agents",
    ]


def test_a_key_of_another_section_is_pointed_there(root):
    assert problems({"runs": RUNS, "hz": 5}, root) == ["hz: unknown key; did you mean 'sampler.hz'?"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "runs: is missing: a list of what to run, such as [{mode: shared}]"),
        ({"runs": []}, "runs: found []; must have at least one entry, or there are 0 trials"),
        ({"runs": RUNS, "repeats": 0}, "repeats: found 0; must be at least 1"),
        ({"runs": {"mode": "shared"}}, 'runs: found {"mode": "shared"}; must be a list'),
        ({"runs": ["shared"]}, 'runs[0]: found "shared"; must be a mapping of keys to values'),
        ({"runs": RUNS, "model": None}, "model: found null; must be a mapping of keys to values"),
        ({"runs": RUNS, "model": {"kind": "local"}}, "model.path: is missing: model.kind local needs it"),
        ({"runs": RUNS, "model": {"kind": "hub"}}, "model.repo: is missing: model.kind hub needs it"),
        (
            {"runs": RUNS, "model": {"path": "mine"}},
            'model.path: found "mine"; is for kind local, and model.kind is synthetic: set kind: local, '
            "or make it null",
        ),
        (
            {"runs": RUNS, "model": {"repo": "some/model"}},
            'model.repo: found "some/model"; is for kind hub, and model.kind is synthetic: set kind: hub, '
            "or make it null",
        ),
        (
            {"runs": RUNS, "model": {"revision": "v2"}},
            'model.revision: found "v2"; is for kind hub, and model.kind is synthetic: set kind: hub, '
            "or make it main",
        ),
        (
            {"runs": RUNS, "devices": {"kind": "slots", "memory_budget_gib": 20}},
            "devices.memory_budget_gib: found 20.0; is for GPUs, and devices.kind is slots: say "
            "slot_memory_mib, set kind: gpu, or make it null",
        ),
        (
            {"runs": RUNS, "devices": {"memory_budget_gib": -4}},
            "devices.memory_budget_gib: found -4; must be more than 0",
        ),
        (
            {"runs": RUNS, "variants": {"base": {"memory_mib": 4}}},
            'variants.base: found {"memory_mib": 4}; must have no options: base is what nothing varies',
        ),
        (
            {"runs": RUNS, "variants": {"near": {"ray_address": "here"}}},
            'variants.near.ray_address: found "here"; must be host:port or auto',
        ),
        ({"runs": RUNS, "repeats": 2.5}, "repeats: found 2.5; must be a whole number"),
        ({"runs": RUNS, "repeats": 10**9}, "repeats: found 1000000000; must be at most 10000"),
        (
            {"runs": RUNS, "timeouts": {"step_s": 9999999}},
            "timeouts.step_s: found 9999999; must be at most 604800",
        ),
        ({"runs": RUNS, "repeats": True}, "repeats: found true; must be a number"),
    ],
)
def test_one_mistake_gives_one_line_that_says_what_would_be_right(root, data, said):
    assert problems(data, root) == [said]


def test_values_from_the_command_line_arrive_as_strings_and_mean_the_same(root):
    typed = {
        "repeats": 2,
        "exclusive": False,
        "devices": {"gpus": None, "memory_budget_gib": 46.5},
        "runs": [{"mode": "parallel", "gpus": [1, 2], "agents": None, "repeats": 4}],
    }
    strings = {
        "repeats": "2",
        "exclusive": "false",
        "devices": {"gpus": "null", "memory_budget_gib": "46.5"},
        "runs": [{"mode": "parallel", "gpus": ["1", "2"], "agents": "null", "repeats": "4"}],
    }
    assert load(strings, root) == load(typed, root)


def test_one_value_stands_for_a_list_of_one(root):
    one = load({"runs": [{"mode": "parallel", "gpus": 2, "variant": "base"}]}, root)
    many = load({"runs": [{"mode": "parallel", "gpus": [2], "variant": ["base"]}]}, root)
    assert one == many


def test_a_config_goes_through_json_unchanged(root):
    config = load(root / "config/config.yaml", root)
    assert Config.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [2\nc: 3\n", "line 3, column 2"),
        ("a: 1\n\tb: 2\n", "line 2, column 1"),
        ("a: 'x\n", "line 2, column 1"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("? [1, 2]\n: 3\n", 'line 1, column 3: found "? [1, 2]"; is not YAML: a list or mapping cannot be'),
        ("- 1\n- 2\n", "the file: found [1, 2]; must be a mapping of keys to values"),
    ],
)
def test_broken_yaml_is_reported_with_its_line(tmp_path, text, said):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_text_that_is_not_utf8_is_reported(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9\n")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
        read_yaml(tmp_path / "latin.yaml")


def test_every_duplicate_key_is_refused_with_both_lines(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("a: 1\nb:\n  c: 1\n  c: 2\nd: {e: 1, e: 2}\na: 3\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert [str(p) for p in caught.value.problems] == [
        "line 4: key 'c' stands on line 3 already: keep one of them",
        "line 5: key 'e' stands on line 5 already: keep one of them",
        "line 6: key 'a' stands on line 1 already: keep one of them",
    ]


def test_a_merge_key_may_be_overridden(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_yaml(path)["b"] == {"x": 1, "y": 3}


def test_the_crew_is_the_seed_study(root):
    texts, found = read_crew(load(root / "config/config.yaml", root).crew, root)
    assert not found
    assert [a.role for a in texts.agents] == [
        "Product Manager",
        "System Architect",
        "AI Researcher",
        "Data Engineer",
        "Backend Developer",
        "Frontend Developer",
        "Security Specialist",
        "DevOps Engineer",
    ]
    prompt = "Explain the concept and challenges of multi-agent multi-GPU execution."
    assert texts.tasks["explain"].description == prompt
    assert set(texts.tasks) == {"explain", "contribute", "plan", "work", "summarise"}
    assert not any(text.endswith("\n") for a in texts.agents for text in (a.goal, a.backstory))


def test_a_task_that_a_mode_needs_and_the_file_lacks_is_named_with_mode_and_agent(study):
    directory, config = study
    path = directory / "tasks.yaml"
    path.write_text(path.read_text().replace("\nplan:", "\nplans:"))
    config["runs"] = [{"mode": "hierarchical", "agents": 2}]
    assert problems(config, directory) == [
        "tasks.yaml: plan: task is missing: mode hierarchical gives it to agent product_manager; "
        "did you mean 'plans'?"
    ]


def test_a_task_that_no_mode_of_the_study_needs_may_be_missing(study):
    directory, config = study
    (directory / "tasks.yaml").write_text("explain: {description: Explain., expected_output: Text.}\n")
    assert load(config, directory)


def test_every_problem_of_the_crews_files_is_listed(study):
    directory, config = study
    (directory / "agents.yaml").write_text(
        textwrap.dedent(
            """\
            one: {role: One, goal: Help, backstory: None of it, verbose: true}
            two: {role: Two, goal: ' '}
            3: {role: Three, goal: Help, backstory: None}
            '3': {role: Three, goal: Help, backstory: None}
            '': {role: Four, goal: Help, backstory: None}
            """
        )
    )
    (directory / "tasks.yaml").write_text(
        "explain: {description: 'About {topic}', expected_output: Text, agent: one}\n"
    )
    at = directory
    assert problems(config, directory) == [
        f"{at}/agents.yaml: one.verbose: unknown key; known here: role, goal, backstory",
        f'{at}/agents.yaml: two.goal: found " "; must not be empty',
        f"{at}/agents.yaml: two.backstory: is missing",
        f"{at}/agents.yaml: 3: stands there twice, as a number and as text: keep one of them",
        f'{at}/agents.yaml: found ""; a name must not be empty',
        f"{at}/tasks.yaml: explain.agent: unknown key; the mode says which agent gets which task: remove it",
    ]


def test_a_placeholder_without_an_input_is_named(study):
    directory, config = study
    path = directory / "tasks.yaml"
    path.write_text(path.read_text().replace("multi-GPU execution.", "{subjekt}."))
    config["crew"]["inputs"] = {"subject": "GPUs"}
    found = problems(config, directory)
    assert found[0] == "tasks.yaml: explain: uses {subjekt}, which crew.inputs lacks; did you mean 'subject'?"
    config["crew"]["inputs"] = {"subjekt": "GPUs"}
    assert load(config, directory).crew.inputs == {"subjekt": "GPUs"}


def test_broken_yaml_in_a_crew_file_is_reported_with_the_other_problems(study):
    directory, config = study
    (directory / "agents.yaml").write_text("one: [\n")
    found = problems({**config, "repeats": 0}, directory)
    assert found[0] == "repeats: found 0; must be at least 1"
    assert found[1].startswith(f"{directory}/agents.yaml: line 2, column 1: ")


def test_an_empty_list_is_said_once(root):
    assert problems({"runs": [{"mode": "parallel", "gpus": []}]}, root) == [
        "runs[0].gpus: found []; must have at least one entry"
    ]
