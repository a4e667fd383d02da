"""The commands a person types are there and documented, and CI runs what it says."""

import os
import re
import subprocess
import sys
import types


def make(root, *words):
    done = subprocess.run(["make", *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout


def test_help_names_every_target_with_its_purpose(root):
    phony = re.search(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), re.MULTILINE)[1].split()
    told = dict(re.findall(r"^  make ([\w-]+) +(\S.*)$", make(root, "help"), re.MULTILINE))
    assert set(told) == set(phony)


def test_report_runs_the_workflow_with_all_cores_and_lays_a_config_over_the_embedded_one(root):
    told = make(root, "--dry-run", "report", "CONFIG=config/mistral-7b-synthetic.yaml", "ARGS=--keep-going")
    assert "snakemake --cores all --configfile config/mistral-7b-synthetic.yaml --keep-going" in told
    assert "scripts/matrix.py --read config/mistral-7b-synthetic.yaml" in told
    assert "--configfile" not in make(root, "--dry-run", "report")


def test_a_config_with_broken_yaml_stops_make_report_with_its_line(root, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("seed: 1\n\truns: 2\n")
    done = subprocess.run(
        ["make", "report", f"CONFIG={path}"],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "MAKEFLAGS": "--old-file=.venv/.runtime"},
        check=False,
    )
    assert done.returncode != 0
    assert "line 2, column 1" in done.stderr


def test_caches_land_in_the_environment_and_the_users_models_stay_where_they_are(root):
    told = make(root, "--print-data-base", "--dry-run", "help")
    for name in ("XDG_CACHE_HOME", "PIP_CACHE_DIR", "MPLCONFIGDIR"):
        assert re.search(rf"^{name} := \$?\S*\.venv|^{name} := .*VENV", told, re.MULTILINE), name
    assert re.search(r"^HF_HOME = .*huggingface", told, re.MULTILINE) or "HF_HOME" in os.environ


def test_ci_runs_the_tests_and_then_the_checks_with_no_part_skipped(root):
    script = root / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = [line.strip() for line in script.read_text().splitlines()]
    assert lines.index("export CREWBENCH_CI=1") < lines.index("make test") < lines.index("make check")
    assert "set -eu" in lines


def test_every_mode_file_in_the_guide_is_a_mode_that_works(root, tmp_path, monkeypatch):
    """CONTRIBUTING's example is real: it is loaded as it stands and makes the Deployments it describes."""
    text = (root / "CONTRIBUTING.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    source = "\n".join(line[3:] for line in example.splitlines())
    namespace = {}
    exec(compile(source, "paired.py", "exec"), namespace)

    from crewbench.trial import Cell

    mode = namespace["MODE"]
    (made,) = mode.attempts(Cell("paired", 2, 5, "eager", "zygote"))
    assert [w.devices for w in made.workers] == [(0,), (1,), (0,)]
    assert [s.worker for s in made.steps] == ["worker0", "worker0", "worker1", "worker1", "worker2"]


def test_the_guides_server_is_an_engine_that_works(root, tmp_path, monkeypatch):
    """The example is real: it is loaded as it stands, declared as it says, and starts and asks its server."""
    text = (root / "docs/adding-an-engine.md").read_text()
    module, line = re.findall(r"```python\n(.*?)```", text, re.DOTALL)

    from crewbench import engines

    quick = types.ModuleType("crewbench.engines.quick")
    monkeypatch.setitem(sys.modules, quick.__name__, quick)
    exec(compile(module, "quick.py", "exec"), quick.__dict__)
    declared = {}
    exec(line, {"ENGINES": declared, "EngineInfo": engines.EngineInfo})
    monkeypatch.setitem(engines.ENGINES, "quick", declared["quick"])

    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    asked = {"path": str(tmp_path), "dtype": "float32", "devices": ["cpu"], "tokens": 8, "port": 9}
    server = engines.create("quick", **asked, length="fixed", account=None, log=tmp_path / "log")
    assert server.command()[-2:] == ["--port", "9"]
    _, body = server.chat([{"role": "user", "content": "x"}])
    assert body["min_tokens"] == body["max_tokens"] == 8


def test_the_guides_name_files_that_exist(root):
    for guide in ("CONTRIBUTING.md", "docs/adding-an-engine.md"):
        named = re.findall(r"(?:scripts|tests|docs|envs|config)/[\w/-]+\.\w+", (root / guide).read_text())
        assert named
        assert [name for name in named if "NAME" not in name and not (root / name).exists()] == []
