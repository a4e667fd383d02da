"""The matrix: which trials there are, in which order, what each reserves, and how a Spec is found again."""

import json
import math
import os
import sys

import pytest

from crewbench import matrix
from crewbench.config import load
from crewbench.matrix import Matrix, MatrixError
from crewbench.problems import ConfigError


@pytest.fixture
def build(root):
    """Config as keywords -> Matrix, on a machine of so many GPUs."""

    def make(gpus: int = 0, **config) -> Matrix:
        config = {"devices": {"kind": "slots", "slots": 8, "slot_memory_mib": 56}, "repeats": 1, **config}
        return matrix.build(load(config, root), root, gpus)

    return make


EVERY_MODE = [
    {"mode": "parallel", "gpus": [2, 4], "agents": [4, 8]},
    {"mode": "auto_expand", "gpus": 8},
    {"mode": "sequential"},
    {"mode": "shared", "start": ["zygote", "process"]},
    {"mode": "cooperative", "variant": ["base", "short"]},
    {"mode": "hierarchical", "gpus": [1, 4]},
]
SHORT = {"short": {"output_tokens": 4, "memory_mib": 40}}


def ids(made):
    return {trial.trial_id for trial in made}


def test_a_run_is_the_product_of_its_lists_with_readable_ids(build):
    made = build(
        runs=[{"mode": "parallel", "gpus": [2, 4], "agents": [4, 8], "start": ["zygote", "disk"]}],
        repeats=2,
    )
    assert len(made) == 16
    assert "parallel__g4__a8__eager__disk__base__r2" in made.trials
    trial = made.trial("parallel__g2__a4__eager__zygote__base__r1")
    assert trial.dir == f"results/trials/{trial.trial_id}/{trial.spec8}"


def test_without_agents_a_run_takes_the_whole_crew(build):
    assert [t.cell.agents for t in build(runs=[{"mode": "shared"}])] == [8]


def test_a_run_may_have_repeats_and_warm_rounds_of_its_own(build):
    made = build(
        repeats=3,
        warm_rounds=2,
        runs=[{"mode": "shared"}, {"mode": "sequential", "repeats": 1, "warm_rounds": 0}],
    )
    assert len(made) == 4
    assert made.spec("sequential__g1__a8__eager__zygote__base__r1").warm_rounds == 0
    assert made.spec("shared__g1__a8__eager__zygote__base__r3").warm_rounds == 2


def test_a_cell_that_makes_no_sense_is_skipped_with_the_modes_reason(build):
    made = build(runs=[{"mode": "shared", "gpus": [1, 2]}, {"mode": "parallel", "gpus": 4, "agents": [2, 4]}])
    assert len(made) == 2
    assert {s["reason"] for s in made.manifest()["skipped"]} == {
        "runs on one GPU, not on 2",
        "4 GPUs for 2 agents: 2 would stay empty",
    }


@pytest.mark.parametrize(
    ("run", "options", "reason"),
    [
        ({"mode": "hierarchical", "gpus": 2}, {}, "mode hierarchical has no option devices_per_copy"),
        ({"mode": "shared"}, {}, "runs on 2 GPUs, not on 1"),
        (
            {"mode": "shared", "gpus": 2},
            {"loader": "parallel"},
            "loader parallel keeps a copy on one device: it reads all weights onto one device",
        ),
        (
            {"mode": "sequential", "gpus": 2, "engine": "compiled"},
            {},
            "engine compiled keeps a copy on one device: torch.compile makes no CUDA graph of kernels on "
            "several devices",
        ),
        ({"mode": "parallel", "gpus": 2}, {"cache_tokens": 9}, "engine eager has no option cache_tokens"),
    ],
    ids=lambda value: value["mode"] if isinstance(value, dict) and "mode" in value else "",
)
def test_spreading_a_copy_where_that_cannot_be_is_skipped_with_the_reason(build, run, options, reason):
    made = build(
        2,
        devices={"kind": "gpu"},
        variants={"spread": {"devices_per_copy": 2, **options}},
        runs=[{"mode": "parallel", "gpus": 2}, {**run, "variant": "spread"}],
    )
    assert [s["reason"] for s in made.manifest()["skipped"]] == [reason]


def test_a_spread_copy_makes_a_cell_of_its_own(build):
    made = build(
        variants={"spread": {"devices_per_copy": 2}},
        runs=[{"mode": "parallel", "gpus": [2, 4], "variant": ["base", "spread"]}],
    )
    workers = made.attempts("parallel__g4__a8__eager__zygote__spread__r1")[0].workers
    assert len(made) == 4 and {len(w.devices) for w in workers} == {2}
    assert made.spec("parallel__g4__a8__eager__zygote__spread__r1").cell.options == {"devices_per_copy": 2}


def test_actors_start_as_new_processes_and_hold_the_engines_that_run_in_one(build):
    made = build(
        runs=[
            {"mode": "actors", "gpus": 2, "agents": 2},
            {"mode": "actors", "agents": 1, "start": "zygote"},
            {"mode": "actors", "agents": 1, "engine": "transformers-serve"},
            {"mode": "parallel", "agents": 1, "variant": "near"},
        ],
        variants={"near": {"ray_address": "127.0.0.1:6379"}},
    )
    assert ids(made) == {"actors__g2__a2__eager__process__base__r1"}
    assert [s["reason"] for s in made.manifest()["skipped"]] == [
        "a Ray actor for each worker: start may be process or disk, not zygote",
        "mode actors has a Ray actor for each worker, and engine transformers-serve cannot be held so",
        "engine eager has no option ray_address",
    ]


def test_actors_without_ray_are_refused_before_any_job_with_the_command_that_brings_it(build, monkeypatch):
    made = build(runs=[{"mode": "actors", "agents": 2}, {"mode": "shared"}])
    monkeypatch.setitem(sys.modules, "ray", None)  # how Python says that a module cannot be imported
    with pytest.raises(ConfigError, match="mode actors.*needs packages.*run `make install-ray`"):
        matrix.check_extras(made)


def test_a_study_in_which_every_cell_is_skipped_is_an_error_with_the_reasons(build):
    with pytest.raises(
        ConfigError, match=r"leave 0 trials: every cell is skipped \(runs on one GPU, not on 2\)"
    ):
        build(runs=[{"mode": "shared", "gpus": 2}])


def test_two_runs_that_make_the_same_cell_are_an_error(build):
    with pytest.raises(ConfigError, match=r"runs\[1\]: makes the same cell as runs\[0\] \(shared__g1__a8__"):
        build(runs=[{"mode": "shared"}, {"mode": "shared", "repeats": 5}])


@pytest.mark.parametrize(("kind", "gpus"), [("auto", 2), ("gpu", 2)])
def test_more_gpus_than_the_machine_has_are_an_error_that_names_both_numbers(build, kind, gpus):
    with pytest.raises(ConfigError, match=r"runs\[0\].gpus: found 4; must be at most 2, the number of GPUs"):
        build(gpus, devices={"kind": kind}, runs=[{"mode": "parallel", "gpus": [1, 4]}])


def test_more_slots_than_there_are_is_an_error_with_auto_too(build):
    with pytest.raises(ConfigError, match=r"found 4; must be at most 3, the number of CPU slots"):
        build(devices={"kind": "auto", "slots": 3}, runs=[{"mode": "parallel", "gpus": 4}])


def test_a_trial_that_needs_more_than_the_command_line_allows_is_an_error(build):
    made = build(runs=[{"mode": "parallel", "gpus": [1, 4]}])
    matrix.check_limit(made, None)
    matrix.check_limit(made, 4)
    with pytest.raises(
        ConfigError, match="--resources gpu: found 3; must be at least 4 for parallel__g4__a8"
    ):
        matrix.check_limit(made, 3)


def test_auto_means_gpus_where_there_are_any_and_slots_elsewhere(build):
    devices = {"kind": "auto", "slots": 3, "slot_memory_mib": 70, "memory_budget_gib": 46}
    runs = [{"mode": "shared"}]
    here, elsewhere = build(2, devices=devices, runs=runs), build(0, devices=devices, runs=runs)
    assert here.devices == matrix.Devices("gpu", 2, 46 * 1024)
    assert elsewhere.devices == matrix.Devices("slot", 3, 70)


def test_asking_for_gpus_where_there_are_none_is_an_error(build):
    with pytest.raises(ConfigError, match='devices.kind: found "gpu"; no GPU is seen here'):
        build(0, devices={"kind": "gpu"}, runs=[{"mode": "shared"}])


def test_a_cluster_says_itself_how_many_gpus_a_host_has(build):
    made = build(0, devices={"kind": "gpu", "gpus": 8}, runs=[{"mode": "parallel", "gpus": 8}])
    assert made.devices == matrix.Devices("gpu", 8, None)


def test_repeats_are_blocks_and_each_block_has_every_cell_in_an_order_of_its_own(build):
    made = build(runs=EVERY_MODE, variants=SHORT, repeats=3)
    order = list(made)
    n = len(order) // 3
    blocks = [order[i : i + n] for i in range(0, len(order), n)]
    assert [{t.repeat for t in block} for block in blocks] == [{1}, {2}, {3}]
    cells = [[t.cell.trial_id(0) for t in block] for block in blocks]
    assert set(cells[0]) == set(cells[1]) == set(cells[2])
    assert cells[0] != cells[1] and cells[1] != cells[2]
    assert [t.priority for t in order] == list(range(len(order), 0, -1))


def test_the_order_comes_from_the_seed(build):
    def order(seed):
        return [t.trial_id for t in build(runs=EVERY_MODE, variants=SHORT, repeats=2, seed=seed)]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_more_repeats_or_runs_leave_the_order_of_the_others_alone(build):
    few = [t.trial_id for t in build(runs=EVERY_MODE, variants=SHORT, repeats=2)]
    more = [t.trial_id for t in build(runs=EVERY_MODE, variants=SHORT, repeats=3)]
    wider = build(runs=[*EVERY_MODE, {"mode": "parallel", "gpus": 8}], variants=SHORT, repeats=2)
    assert more[: len(few)] == few
    assert [t.trial_id for t in wider if t.trial_id in few] == few


def test_packed_trials_go_by_gpus_times_estimated_time_inside_a_repeat(build):
    made = build(
        exclusive=False,
        repeats=2,
        runs=[{"mode": "parallel", "gpus": [1, 2, 4, 8]}, {"mode": "shared", "start": ["zygote", "process"]}],
    )
    first = [t for t in made if t.repeat == 1]
    assert list(made)[: len(first)] == first
    sizes = [t.cell.gpus * made.estimated_s(t.trial_id) for t in first]
    assert sizes == sorted(sizes, reverse=True)
    assert [t.cell.gpus for t in first][:2] == [8, 4]


def test_an_exclusive_trial_takes_the_whole_host_and_a_packed_one_little_of_it(build):
    runs = [{"mode": "parallel", "gpus": 4}]
    for exclusive, host in ((True, 100), (False, 1)):
        made = build(exclusive=exclusive, runs=runs)
        assert made.resources(next(iter(made.trials)))["host"] == host


def test_resources_come_from_the_cell(build):
    made = build(runs=[{"mode": "parallel", "gpus": 4}, {"mode": "shared"}], threads_per_worker=2)
    parallel = made.resources("parallel__g4__a8__eager__zygote__base__r1")
    shared = made.resources("shared__g1__a8__eager__zygote__base__r1")
    assert parallel["gpu"] == 4 and shared["gpu"] == 1
    assert parallel["cores"] == 16 and shared["cores"] == 2
    assert parallel["mem_mb"] > shared["mem_mb"] > 1000
    assert all(isinstance(v, int) and v > 0 for v in (*parallel.values(), *shared.values()))


def test_a_spec_is_rebuilt_from_the_manifest_as_it_was(build):
    made = build(runs=EVERY_MODE, variants=SHORT, repeats=2)
    text = json.dumps(made.manifest())
    for trial in made:
        assert made.spec(trial.trial_id).spec8 == trial.spec8
    assert text.count(made.crew.agents[0].backstory[:40]) == 1


def test_a_manifest_goes_through_its_file_unchanged(build, tmp_path):
    made = build(runs=EVERY_MODE, variants=SHORT, repeats=2)
    path = tmp_path / "matrix.json"
    path.write_text(json.dumps(made.manifest()))
    again = matrix.read(path)
    assert again.manifest() == made.manifest()
    for trial_id in made.trials:
        assert again.spec(trial_id) == made.spec(trial_id)
        assert again.resources(trial_id) == made.resources(trial_id)


def test_a_spec_holds_what_its_cell_reads_and_no_more(build):
    made = build(runs=EVERY_MODE, variants=SHORT)
    parallel = made.spec("parallel__g2__a4__eager__zygote__base__r1")
    assert len(parallel.agents) == 4
    assert [t.name for t in parallel.tasks] == ["explain"]
    hierarchical = made.spec("hierarchical__g4__a8__eager__zygote__base__r1")
    assert [t.name for t in hierarchical.tasks] == ["plan", "work", "summarise"]
    short = made.spec("cooperative__g1__a8__eager__zygote__short__r1")
    assert (short.output_tokens, short.memory_mib) == (4, 40)
    assert short.cell.options == {"output_tokens": 4, "memory_mib": 40}
    base = made.spec("cooperative__g1__a8__eager__zygote__base__r1")
    assert (base.output_tokens, base.memory_mib, base.cell.options) == (32, 56, {})


def changed(build, before, after):
    """The trial ids whose directory is another one (or new) after a change of config."""
    old = {t.trial_id: t.dir for t in build(**before)}
    return {t.trial_id for t in build(**after) if old.get(t.trial_id) != t.dir}


BASE = {"runs": EVERY_MODE, "variants": SHORT}


@pytest.mark.parametrize(
    "change",
    [
        {"report": {"title": "Other", "palette": "deep"}},
        {"thresholds": {"idle_share": 0.5}},
        {"model": {"name": "shown"}},
        {"crew": {"inputs": {"unused": "text"}}},
        {"variants": {**SHORT, "unused": {"memory_mib": 8}}},
        {"seed": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_no_trial_reads_changes_no_trial(build, change):
    assert changed(build, BASE, {**BASE, **change}) == set()


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"seed": 1}},
        {"model": {"dtype": "bfloat16"}},
        {"warm_rounds": 5},
        {"exclusive": False},
        {"sampler": {"hz": 5}},
        {"timeouts": {"step_s": 5}},
        {"threads_per_worker": 2},
    ],
    ids=lambda change: "-".join(map(str, change)),
)
def test_what_every_trial_reads_changes_every_trial(build, change):
    assert changed(build, BASE, {**BASE, **change}) == ids(build(**BASE))


def test_a_variants_option_changes_the_trials_of_that_variant(build):
    after = {**BASE, "variants": {"short": {"output_tokens": 5, "memory_mib": 40}}}
    assert changed(build, BASE, after) == {"cooperative__g1__a8__eager__zygote__short__r1"}


def test_a_changed_run_changes_its_trials_and_a_new_gpu_count_adds_its_cells(build):
    runs = [dict(run) for run in EVERY_MODE]
    runs[2]["warm_rounds"] = 7
    runs[5] = {**runs[5], "gpus": [1, 2, 4]}
    assert changed(build, BASE, {**BASE, "runs": runs}) == {
        "sequential__g1__a8__eager__zygote__base__r1",
        "hierarchical__g2__a8__eager__zygote__base__r1",
    }


def test_switching_back_finds_the_old_directories(build):
    before = {t.dir for t in build(**BASE)}
    between = {t.dir for t in build(**BASE, generation={"output_tokens": 9})}
    assert len(before & between) == 1  # the variant that says its own number of tokens
    assert {t.dir for t in build(**BASE)} == before


def test_a_changed_text_of_a_task_changes_the_modes_that_use_it(build, root, tmp_path):
    for name in ("agents.yaml", "tasks.yaml"):
        (tmp_path / name).write_text((root / "config" / name).read_text())
    config = {
        "crew": {"agents": str(tmp_path / "agents.yaml"), "tasks": str(tmp_path / "tasks.yaml")},
        "runs": EVERY_MODE,
        "variants": SHORT,
    }
    before = {t.trial_id: t.spec8 for t in build(**config)}
    path = tmp_path / "tasks.yaml"
    path.write_text(path.read_text().replace("Plan the work", "Plan all work"))
    after = {t.trial_id: t.spec8 for t in build(**config)}
    assert {i for i in after if after[i] != before[i]} == {
        "hierarchical__g1__a8__eager__zygote__base__r1",
        "hierarchical__g4__a8__eager__zygote__base__r1",
    }


def test_an_unknown_trial_is_named(build):
    with pytest.raises(MatrixError, match="no trial 'nothing' in this matrix of 1 trials"):
        build(runs=[{"mode": "shared"}]).spec("nothing")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": {"runs": []}}'])
def test_a_half_written_manifest_is_named_with_the_remedy(tmp_path, text):
    path = tmp_path / "matrix.json"
    path.write_text(text)
    with pytest.raises(MatrixError, match="is not a whole manifest .* delete it and run the workflow"):
        matrix.read(path)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(MatrixError, match="matrix.json is missing: run the workflow"):
        matrix.read(tmp_path / "matrix.json")


def test_a_manifest_that_contradicts_its_hashes_is_refused(build, tmp_path):
    data = build(runs=[{"mode": "shared"}]).manifest()
    data["config"]["generation"]["output_tokens"] += 1
    path = tmp_path / "matrix.json"
    path.write_text(json.dumps(data))
    with pytest.raises(MatrixError, match="written by another version"):
        matrix.read(path).spec("shared__g1__a8__eager__zygote__base__r1")


def test_the_deployments_hash_is_the_same_for_all_repeats_and_differs_between_modes(build):
    made = build(runs=EVERY_MODE, variants=SHORT, repeats=2)
    one = "shared__g1__a8__eager__zygote__base__r"
    assert made.deployments8(f"{one}1") == made.deployments8(f"{one}2")
    hashes = {made.deployments8(t.trial_id) for t in made if t.cell.agents == 8 and t.cell.gpus == 1}
    assert len(hashes) == 4  # sequential, shared, cooperative and hierarchical on one GPU


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A real tiny checkpoint from the project's own builder."""
    from crewbench.checkpoint import synthetic

    out = tmp_path_factory.mktemp("checkpoint")
    synthetic.build("tiny", 0, "float32", out)
    return next(p.parent for p in out.rglob("config.json"))


def test_a_local_checkpoint_is_known_by_its_files(build, checkpoint):
    model = {"kind": "local", "path": str(checkpoint)}

    def info():
        return build(model=model, runs=[{"mode": "shared"}]).model

    first = info()
    assert first.dtype == "float32" and first.path == str(checkpoint.resolve())
    assert first.weights_mib >= 15
    assert info() == first
    config = checkpoint / "config.json"
    stat = config.stat()
    os.utime(config, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert info().model_id != first.model_id


def test_a_directory_that_is_no_checkpoint_is_an_error_before_any_job(build, tmp_path):
    with pytest.raises(ConfigError, match="config.json is missing: is .* a checkpoint's directory"):
        build(model={"kind": "local", "path": str(tmp_path)}, runs=[{"mode": "shared"}])


def test_a_hub_model_that_is_not_in_the_cache_is_an_error_without_a_download(build):
    with pytest.raises(
        ConfigError, match='model.repo: found "nobody/nothing"; revision .* local Hugging Face'
    ):
        build(model={"kind": "hub", "repo": "nobody/nothing"}, runs=[{"mode": "shared"}])


# Checks of engines ---------------------------------------------------------------------------------

GPUS = {"gpus": 8, "devices": {"kind": "gpu"}}


def test_an_engine_is_checked_once_for_all_trials_that_compute_alike(build):
    variants = {"short": {"output_tokens": 4, "memory_mib": 40}, "fast": {"loader": "parallel"}}
    made = build(
        repeats=3,
        variants=variants,
        runs=[
            {"mode": "parallel", "gpus": [2, 4], "agents": [4, 8], "start": ["zygote", "disk"]},
            {"mode": "shared", "variant": ["base", "short", "fast"]},
        ],
    )
    assert list(made.checks) == ["eager__d1", "eager__d1__loader-parallel"]
    told = {line["check_id"] for line in made.manifest()["trials"] if line["variant"] == "fast"}
    assert told == {"eager__d1__loader-parallel"}


def test_each_engine_and_each_number_of_devices_of_a_copy_has_a_check_of_its_own(build):
    made = build(
        **GPUS,
        variants={
            "spread": {"devices_per_copy": 2},
            "small": {"cache_tokens": 512},
            "two": {"layout": "replicas"},
        },
        runs=[
            {"mode": "parallel", "gpus": 2, "agents": 2, "engine": ["eager", "compiled"]},
            {"mode": "parallel", "gpus": 2, "agents": 2, "variant": "spread"},
            {"mode": "parallel", "gpus": 2, "agents": 2, "engine": "compiled", "variant": "small"},
            {"mode": "served", "gpus": [1, 4], "engine": "vllm"},
            {"mode": "served", "gpus": 4, "engine": "vllm", "variant": "two"},
        ],
    )
    assert set(made.checks) == {
        *("eager__d1", "eager__d2", "compiled__d1", "compiled__d1__cache_tokens-512"),
        *("vllm__d1", "vllm__d4"),
    }
    assert made.check_resources("vllm__d4")["gpu"] == 4
    assert made.check_resources("eager__d1")["host"] == matrix.HOST


def test_a_check_is_rebuilt_from_the_manifest_as_it_was(build, tmp_path):
    made = build(runs=EVERY_MODE, variants=SHORT)
    matrix.write(made, tmp_path / "matrix.json")
    again = matrix.read(tmp_path / "matrix.json")
    assert again.checks == made.checks
    (check,) = made.checks.values()
    assert made.manifest()["checks"][0]["dir"] == f"results/quality/eager__d1/{check.spec8}"
    with pytest.raises(MatrixError, match="no check 'vllm__d1'"):
        again.check("vllm__d1")
    with pytest.raises(MatrixError, match=check.spec8):
        again.check("eager__d1", "00000000")


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        ({"generation": {"output_tokens": 4}}, False),
        ({"repeats": 2, "warm_rounds": 0}, False),
        ({"thresholds": {"logit_error": 3}}, False),
        ({"model": {"dtype": "bfloat16"}}, True),
        ({"model": {"seed": 1}}, True),
        ({"seed": 2}, True),
    ],
)
def test_a_check_changes_with_what_it_reads_alone(build, change, changes):
    before, after = (build(runs=EVERY_MODE, variants=SHORT, **c).check("eager__d1") for c in ({}, change))
    assert (before.spec8 != after.spec8) == changes


def test_whether_a_checkpoint_is_staged_is_of_the_trial_and_where_is_not(build):
    plain, here, there = (
        {t.trial_id: t.spec8 for t in build(runs=EVERY_MODE, variants=SHORT, **c)}
        for c in ({}, {"model": {"stage": "$TMPDIR"}}, {"model": {"stage": "/scratch"}})
    )
    assert here == there
    assert plain.keys() == here.keys() and not set(plain.values()) & set(here.values())


def test_a_trial_that_spans_hosts_asks_for_a_hosts_share_and_a_cell_that_cannot_is_skipped(build):
    near = {"ray_address": "auto"}
    made = build(
        runs=[
            {"mode": "actors", "gpus": [3, 8], "agents": 8, "variant": "two"},
            {"mode": "actors", "gpus": 2, "agents": 2, "variant": ["alone", "spread"]},
            {"mode": "parallel", "gpus": 2, "agents": 2, "variant": "far"},
        ],
        variants={
            "two": {**near, "hosts": 2},
            "alone": {"hosts": 2},
            "spread": {**near, "hosts": 2, "devices_per_copy": 2},
            "far": {"hosts": 2},
        },
        devices={"kind": "slots", "slots": 4},
    )
    (trial,) = made
    assert (trial.cell.gpus, made.resources(trial.trial_id)["gpu"], made.max_gpus) == (8, 4, 4)
    assert [s["reason"] for s in made.manifest()["skipped"]] == [
        "3 GPUs cannot be divided over 2 hosts",
        "2 hosts need ray_address: a Ray of the trial's own is on one host",
        "a copy would lie on two hosts: each has 1 of the GPUs",
        "engine eager has no option hosts",
    ]


@pytest.mark.parametrize(
    ("devices", "option", "planned"),
    [
        ({"kind": "gpu", "gpus": 1}, {}, True),
        ({"kind": "gpu", "gpus": 1}, {"memory_mib": 20000}, False),
        ({"kind": "gpu", "gpus": 1, "memory_budget_gib": 20}, {}, False),
        ({"kind": "slots", "slots": 1}, {"memory_mib": 20}, True),
    ],
)
def test_a_memory_budget_of_gpus_on_several_hosts_is_skipped_before_a_trial_refuses_it(
    build, devices, option, planned
):
    made = build(
        runs=[
            {"mode": "actors", "gpus": 2, "agents": 2, "variant": "two"},
            {"mode": "shared", "agents": 2},
        ],
        variants={"two": {"ray_address": "auto", "hosts": 2, **option}},
        devices=devices,
    )
    assert [s.reason for s in made.skipped] == (
        [] if planned else ["a memory budget of GPUs is kept on one host, not on 2"]
    )


@pytest.mark.parametrize("timeouts", [{"load_s": 60, "step_s": 7200}, {"load_s": 7200, "step_s": 60}])
def test_a_clusters_time_limit_leaves_time_for_the_trials_own_timeouts(build, timeouts):
    made = build(runs=[{"mode": "shared", "agents": 2}], timeouts=timeouts)
    (trial,) = made
    assert 121 <= made.resources(trial.trial_id)["runtime"] - 15 <= 125


def test_a_clusters_time_limit_is_a_multiple_of_what_a_long_trial_takes(build):
    made = build(runs=[{"mode": "cooperative", "agents": 8, "warm_rounds": 2000}])
    (trial,) = made
    expected_s = made.estimated_s(trial.trial_id)
    assert made.resources(trial.trial_id)["runtime"] == 15 + math.ceil(5 * expected_s / 60)
    assert 4 * expected_s > 1200
