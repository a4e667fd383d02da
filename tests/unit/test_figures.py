"""The figures: what they show, that they can be read by everybody, and that nothing breaks them."""

import itertools
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

import made_trials
from crewbench import cells, drawing, figures, palette, stats, tables
from crewbench.drawing import Canvas
from crewbench.figures import repayment
from crewbench.figures.study import ROWS_MAX
from crewbench.records import STAGES, Status
from crewbench.trial import Cell
from crewbench.words import estimate, number

ONE = {"agents": 8, "engine": "eager", "start": "zygote"}
SVG = "{http://www.w3.org/2000/svg}"


def study_of(lines, root) -> figures.Study:
    manifest = tables.read_manifest(made_trials.write_manifest(root, lines))
    return figures.Study(tables.build(manifest), {"scaling_efficiency": 0.5})


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> figures.Study:
    """Every mode three times, one agent that timed out, one cell that never fitted."""
    root = tmp_path_factory.mktemp("study")
    fail = (1, "agent3", Status.TIMEOUT, "no answer within 60 s")
    lines = [
        made_trials.make_trial(root / "trials", cell, repeat, warm_rounds=1)
        for repeat in (1, 2, 3)
        for cell in [*made_trials.study_cells(), Cell("parallel", 2, **ONE)]
        if cell.mode != "shared"
    ]
    lines += [
        made_trials.make_trial(root / "trials", Cell("shared", 1, **ONE), r, fail=fail, warm_rounds=1)
        for r in (1, 2, 3)
    ]
    return study_of(lines, root)


@pytest.fixture(scope="module")
def gpus(tmp_path_factory) -> figures.Study:
    """Two engines on GPUs whose memory bandwidth is known, from every start state."""
    root = tmp_path_factory.mktemp("gpus")
    return study_of(made_trials.gpu_study(root / "trials"), root)


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    figures.write(study, out, png_dpi=40)
    return out


@pytest.fixture
def draw(study):
    """Draws a figure for a test and closes it afterwards."""
    drawn = []

    def one(function, canvas=None, *more, of=study):
        drawn.append(function(of, canvas or Canvas(), *more))
        return drawn[-1]

    yield one
    for each in drawn:
        if each.figure:
            drawing.close(each.figure)


def drawings(written):
    """The SVG files of figures that show something."""
    index = json.loads((written / "figures.json").read_text())
    names = [entry["name"] for entry in index if not entry["missing"]]
    return [written / f"{name}{suffix}.svg" for name in names for suffix in ("", "-narrow")]


def texts(drawn) -> list[str]:
    from matplotlib.text import Text

    return [t.get_text() for t in drawn.figure.findobj(Text) if t.get_text()]


# What they show ------------------------------------------------------------------------------------


def test_every_trial_that_worked_is_a_point_cold_and_warm(study, draw):
    axes = draw(figures.cold_warm).figure.axes[0]
    points = sum(len(c.get_offsets()) for c in axes.collections)
    assert points == 2 * (study.trials["status"] == Status.OK).sum()


def test_cells_that_do_other_work_stand_apart_and_say_so(draw):
    said = texts(draw(figures.cold_warm))
    order = [t for t in said if t in ("the same work", "other work, not compared")]
    assert order[:2] == ["the same work", "other work, not compared"]
    assert said.index("Sequential, 1 slot") < said.index("other work, not compared")
    assert said.index("other work, not compared") < said.index("Cooperative chain, 1 slot")


def test_cells_of_other_settings_stand_apart_in_the_stages_and_other_work_says_so(draw):
    said = texts(draw(figures.stages, Canvas(), "resident"))
    order = ["zygote start", "Sequential, 1 slot", "Cooperative chain, 1 slot (other work)", "process start"]
    assert [t for t in said if t in order] == order


def test_a_cell_that_never_worked_is_shown_with_how_it_ended(draw):
    assert "out of memory (3 of 3)" in texts(draw(figures.cold_warm))


def widths(axes) -> list[float]:
    """How long each bar of a figure of rows is, its parts together."""
    width: dict[float, float] = {}
    for bar in (p for p in axes.patches if not (p.get_gid() or "").startswith("curtain")):
        middle = round(bar.get_y() + bar.get_height() / 2, 3)
        width[middle] = width.get(middle, 0.0) + bar.get_width()
    return sorted(width.values())


@pytest.mark.parametrize(
    ("start", "column"), [("process", "cold_s"), ("zygote", "cold_s"), ("resident", "warm_s")]
)
def test_stages_add_up_to_the_tables_makespan_in_a_figure_for_each_start_state(study, draw, start, column):
    axes = draw(figures.stages, Canvas(), start).figure.axes[0]
    worked = study.tables["trials"].query("status == 'ok'")
    worked = worked if start == "resident" else worked[worked["start"] == start]
    expected = worked.groupby(["mode", "gpus", "start"])[column].agg(lambda s: np.exp(np.log(s).mean()))
    assert widths(axes) == pytest.approx(sorted(expected), rel=1e-6)
    assert sum(len(c.get_offsets()) for c in axes.collections) == len(worked)


@pytest.mark.parametrize("rounds", [(2.0, 9.0, 3.0), (2.0, 3.0, 1.0, 9.0)])
def test_a_trials_warm_stages_are_those_of_the_round_that_the_tables_give(study, draw, rounds):
    """A slow first round is in no bar: the median round is, of an even number the two in the middle."""
    trials = study.tables["trials"].query("mode == 'sequential' and repeat == 1")
    warm = cells.only(study.tables["rounds"], {"phase": "warm", "trial_id": trials["trial_id"].iloc[0]})
    nothing = {f"{stage}_s": 0.0 for stage in STAGES}
    one = warm.iloc[[0] * len(rounds)].assign(**{**nothing, "decode_s": rounds, "makespan_s": rounds})
    of = {**study.tables, "rounds": one, "trials": trials.assign(warm_s=float(np.median(rounds)))}
    drawn = draw(figures.stages, Canvas(), "resident", of=figures.Study(of, {}))
    assert widths(drawn.figure.axes[0]) == pytest.approx([float(np.median(rounds))])
    assert f"{np.median(rounds):.2f} s" in texts(drawn)


def test_a_stage_figure_whose_rows_differ_in_all_of_the_setting_has_a_whole_caption(tmp_path, draw):
    cells_of_all = [
        Cell("parallel", 1, 1, "eager", "zygote"),
        Cell("served", 1, 2, "vllm", "process", "fast"),
    ]
    lines = [made_trials.make_trial(tmp_path / "trials", cell, 1, warm_rounds=1) for cell in cells_of_all]
    caption = draw(figures.stages, Canvas(), "resident", of=study_of(lines, tmp_path)).caption
    assert "unexplained. n = 1 trial a cell, every trial a point." in caption
    assert ". ;" not in caption


def test_a_study_has_a_stage_figure_for_each_of_its_start_states_and_for_warm_rounds(written, study):
    drawn = [p.stem for p in written.glob("stages_*.png")]
    assert sorted(drawn) == ["stages_process", "stages_resident", "stages_zygote"]


def test_failed_attempts_are_a_part_of_the_cold_bar_of_their_own(draw):
    assert "failed attempts" in texts(draw(figures.stages, Canvas(), "zygote"))
    assert "failed attempts" not in texts(draw(figures.stages, Canvas(), "resident"))


@pytest.mark.parametrize(("start", "said"), [
    ("zygote", "50.0 s, most of it failed 40.0 s, decode 10.0 s"),
    ("resident", "10.0 s, most of it decode 10.0 s"),
])  # fmt: skip
def test_stages_are_those_of_the_attempt_that_was_not_given_up(tmp_path, draw, start, said):
    of = study_of([made_trials.given_up(tmp_path)], tmp_path)
    assert draw(figures.stages, Canvas(), start, of=of).description.endswith(said)


def test_what_the_stages_leave_is_idle_and_marked_where_it_is_too_much(study, draw):
    rounds = study.tables["rounds"]
    short = (rounds["mode"] == "sequential") & (rounds["phase"] == "warm")
    lost = rounds.assign(
        decode_s=rounds["decode_s"].mask(short, rounds["decode_s"] - 0.05 * rounds["makespan_s"])
    )
    whole = draw(figures.stages, Canvas(), "resident")
    drawn = draw(figures.stages, Canvas(), "resident", of=figures.Study({**study.tables, "rounds": lost}, {}))
    assert widths(drawn.figure.axes[0]) == pytest.approx(widths(whole.figure.axes[0]), rel=1e-6)
    assert [t for t in texts(drawn) if t.endswith("% idle")][0].endswith(" s, 5.00 % idle")
    assert re.search(r"Sequential, 1 slot.*5.00 % unexplained at worst", drawn.description)
    assert "More than 2.00 % unexplained is marked." in drawn.caption
    assert not [t for t in texts(whole) if t.endswith("% idle")]
    assert "No trial has more than 2.00 % unexplained." in whole.caption


def test_a_chains_context_has_a_point_for_each_trial_and_step(study, draw):
    drawn = draw(figures.chain)
    tokens, prefill = drawn.figure.axes
    assert [sum(len(c.get_offsets()) for c in axes.collections) for axes in (tokens, prefill)] == [24, 24]
    assert re.search(r"step 8 \(devops_engineer\): 516 prompt tokens, prefill [\d.]+ ms", drawn.description)


def test_attempts_show_how_many_devices_each_had_and_what_it_cost(draw):
    drawn = draw(figures.attempts)
    assert texts(drawn).count("3") >= 3
    assert re.search(r"1 slot failed 3 of 3 times at [\d.]+ s and [\d.]+ slot-seconds", drawn.caption)
    assert "3 slots worked" in drawn.description


def test_attempts_that_failed_are_counted_among_those_on_as_many_devices(draw, tmp_path):
    lines = [
        made_trials.make_trial(
            tmp_path, Cell("auto_expand", 2, **ONE), repeat, costs=made_trials.Costs(budget_mib=budget)
        )
        for repeat, budget in ((1, 1000), (2, 3000), (3, 3000))
    ]
    found = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, lines)))
    drawn = draw(figures.attempts, of=figures.Study(found, {}))
    assert "1 slot failed 1 of 3 times at" in drawn.caption


def test_scaling_shows_where_it_failed_and_its_threshold(draw):
    drawn = draw(figures.scaling)
    assert "threshold 50 %" in texts(drawn)
    assert "2 slots: out of memory (3 of 3)" in drawn.description


def test_the_ladder_has_every_start_state_down_to_the_resident_round(draw):
    rungs = ("disk", "process", "zygote", "resident")
    drawn = draw(figures.starts)
    assert [t for t in texts(drawn) if t in rungs] == [*rungs, *rungs]
    assert texts(drawn).count("not run") == 2
    assert "The zygote's own start took 5.50 s (median) and is not counted." in drawn.caption


@pytest.mark.parametrize("narrow", [False, True])
def test_what_a_start_state_costs_over_the_next_is_named_and_paired(study, draw, narrow):
    trials = study.tables["trials"].query("mode == 'parallel' and gpus == 8").set_index("repeat")
    more = trials.query("start == 'process'")["cold_s"] - trials.query("start == 'zygote'")["cold_s"]
    mean = stats.arithmetic_mean(more)
    said = f"+{number(mean.value)} s [{number(mean.low)}, {number(mean.high)}] over zygote"
    drawn = draw(figures.starts, Canvas(narrow))
    assert said in texts(drawn)
    assert f"{said} (paired by repeat, n = 3)" in drawn.description
    assert "the mean of the differences paired by repeat, in brackets its 95 % interval" in drawn.caption


def test_a_start_state_is_said_as_its_geometric_mean_like_everything_else(study, draw):
    trials = study.tables["trials"].query("mode == 'parallel' and gpus == 8 and start == 'process'")
    cold = stats.geometric_mean(trials["cold_s"])
    drawn = draw(figures.starts)
    assert f"{number(cold.value)} s" in texts(drawn)
    assert f"from process: {estimate(cold, 's')}, n = 3" in drawn.description
    assert "median, n" not in drawn.description


def test_one_repeat_of_a_start_state_claims_no_interval(tmp_path, draw):
    lines = [
        made_trials.make_trial(tmp_path / "trials", Cell("parallel", 8, **{**ONE, "start": start}), 1)
        for start in ("process", "zygote")
    ]
    drawn = draw(figures.starts, of=study_of(lines, tmp_path))
    assert any(t.endswith("s (one repeat, no interval) over zygote") for t in texts(drawn))


def test_every_trial_is_a_point_of_the_ladder(gpus, draw):
    first_token, makespan = draw(figures.starts, of=gpus).figure.axes
    worked = gpus.tables["trials"].query("mode == 'parallel'")
    resident = 3 * 3  # the warm rounds of each ladder's zygote trials
    for axes in (first_token, makespan):
        assert sum(len(c.get_offsets()) for c in axes.collections) == len(worked) + resident


def test_what_lay_compiled_is_part_of_a_rungs_name(gpus, draw):
    drawn = draw(figures.starts, of=gpus)
    for name in ("disk, compile cache empty", "process, compile cache empty", "zygote, compile cache filled"):
        assert texts(drawn).count(name) == 2
    assert any(t.endswith("(one repeat, no interval) over zygote (cache filled)") for t in texts(drawn))


@pytest.mark.parametrize("narrow", [False, True])
def test_every_engine_stands_beside_the_bandwidth_limit(gpus, draw, narrow):
    drawn = draw(figures.engines, Canvas(narrow), of=gpus)
    said = texts(drawn)
    assert said.index("an agent has its device alone") < said.index("compiled: Parallel, 8 GPUs")
    assert said.index("agents share a device, and its bandwidth") < said.index("eager: Parallel, 4 GPUs")
    share = (
        gpus.tables["trials"].query("engine == 'compiled' and start == 'zygote'")["bandwidth_share"].median()
    )
    assert any(re.fullmatch(rf"[\d.]+ \({100 * share:.0f} %\)", t) for t in said)
    assert "of 297 tokens/s" in drawn.description
    limits = [line for line in drawn.figure.axes[0].lines if set(line.get_xdata()) == {4300 / 14.5}]
    assert len(limits) == 4


def test_compiling_stands_below_by_what_was_found_compiled(gpus, draw):
    drawn = draw(figures.engines, of=gpus)
    assert [t for t in texts(drawn) if t.startswith("compiled: ") and "start" in t] == [
        "compiled: disk start, compile cache empty",
        "compiled: process start, compile cache empty",
        "compiled: process start, compile cache filled",
        "compiled: zygote start, compile cache filled",
    ]


def test_an_engine_without_a_known_limit_says_why_in_a_line(draw):
    drawn = draw(figures.engines)
    assert drawn.figure is None
    assert drawn.missing == "no device's memory bandwidth is known: a CPU slot has no memory of its own"


@pytest.fixture(scope="module")
def clients(tmp_path_factory) -> figures.Study:
    """Replays, an agent alone, a server."""
    root = tmp_path_factory.mktemp("clients")
    return study_of(made_trials.client_study(root / "trials"), root)


def test_every_trial_with_a_replay_is_a_point_beside_it_and_in_the_ratio(clients, draw):
    times, ratios = draw(figures.framework, of=clients).figure.axes
    trials = clients.tables["trials"]
    replayed = trials["replay_s"].notna().sum()
    assert sum(len(c.get_offsets()) for c in times.collections) == len(trials) + replayed
    assert sum(len(c.get_offsets()) for c in ratios.collections) == replayed


@pytest.mark.parametrize("narrow", [False, True])
def test_the_frameworks_ratio_stands_with_its_interval_beside_the_goal(clients, draw, narrow):
    drawn = draw(figures.framework, Canvas(narrow), of=clients)
    said = texts(drawn)
    assert "goal: 1.05 ×" in said
    assert sum(bool(re.fullmatch(r"[\d.]+ ×", t)) for t in said) == 7
    assert sum(bool(re.fullmatch(r"\[[\d.]+, [\d.]+\]", t)) for t in said) == 7
    goals = [line for line in drawn.figure.axes[1].lines if set(line.get_xdata()) == {1.05}]
    assert len(goals) == 7


def test_the_goal_of_the_config_is_the_figures(clients, draw):
    drawn = draw(figures.framework, of=figures.Study(clients.tables, {"framework_ratio": 1.2}))
    assert "goal: 1.2 ×" in texts(drawn)
    assert "The goal is at most 1.2." in drawn.caption


def test_a_cell_without_a_replay_is_there_and_not_measured(clients, draw):
    drawn = draw(figures.framework, of=clients)
    assert "not measured" in texts(drawn)
    assert re.search(r"Cooperative chain.*: not measured: replays were off", drawn.description)


def test_what_the_framework_adds_is_said_for_a_round_and_for_a_step(clients, draw):
    said = next(
        line
        for line in draw(figures.framework, of=clients).description.split("; ")
        if line.startswith("Served")
    )
    assert re.search(r"[\d.]+ × \[[\d.]+, [\d.]+\], goal 1.05 inside, but 10 trials are needed", said)
    assert re.search(r"for a step [\d.]+ ms, 80.0 tokens and 0 calls more", said)


@pytest.mark.parametrize("narrow", [False, True])
def test_agents_stand_by_what_they_share(clients, draw, narrow):
    said = texts(draw(figures.interference, Canvas(narrow), of=clients))
    shared = ("same worker", "same device", "same host", "nobody at the same time")
    headings = [f"{what}: eager, process start" for what in shared]
    assert [t for t in said if t in headings] == headings
    assert "alone" in said
    assert said.count("not measured") == 3  # the zygote's, the server's, and the chain: it does other work


def test_every_trial_that_has_an_agent_alone_beside_it_is_a_point(clients, draw):
    axes = draw(figures.interference, of=clients).figure.axes[0]
    beside = clients.tables["interference"].query("agents > 1")
    assert sum(len(c.get_offsets()) for c in axes.collections) == beside["slowdown"].notna().sum()


def test_repayment_stands_by_what_is_compared_in_calls(clients, draw):
    drawn = draw(figures.breakeven, of=clients)
    said = texts(drawn)
    assert said.index("resident instead of fresh, eager") < said.index("vllm instead of eager")
    assert "Served instead of Sequential, 1 slot, 3 agents" in said
    assert re.search(r"Sequential, 1 slot, 3 agents: [\d.]+ calls \[[\d.]+, [\d.]+\]", drawn.description)
    axes = drawn.figure.axes[0]
    points = sum(len(c.get_offsets()) for c in axes.collections)
    assert points == clients.tables["breakeven_repeats"]["calls"].notna().sum()


def test_pairs_that_differ_in_a_variant_or_in_what_was_compiled_have_labels_of_their_own():
    row = {
        "comparison": "runner", "agents": 8, "gpus": 1, "host": "vm",
        "a_mode": "parallel", "a_engine": "eager", "a_start": "process", "a_variant": "base",
        "b_mode": "served", "b_engine": "vllm", "b_start": "process", "b_variant": "base",
        "a_compile_cache": "none", "b_compile_cache": "none",
    }  # fmt: skip
    rows = [
        row,
        {**row, "a_variant": "short", "b_variant": "short"},
        {**row, "b_compile_cache": "filled"},
        {**row, "a_engine": "compiled", "a_compile_cache": "filled"},
        {**row, "a_start": "zygote"},
    ]
    named = repayment.varying(pd.DataFrame(rows))
    assert [repayment.label(r, named, "gpu") for r in rows] == [
        "Served (base) instead of Parallel, 1 GPU, process start, base",
        "Served (short) instead of Parallel, 1 GPU, process start, short",
        "Served (base, compile cache filled) instead of Parallel, 1 GPU, process start, base",
        "Served (base) instead of Parallel, 1 GPU, process start, base, compile cache filled",
        "Served (process start, base) instead of Parallel, 1 GPU, zygote start, base",
    ]


def test_never_is_a_word_and_a_wide_range_has_a_logarithmic_axis(gpus, clients, draw):
    never = clients.tables["breakeven"].assign(outcome="never", note="its calls are not cheaper")
    none = figures.Study({**clients.tables, "breakeven": never}, {})
    drawn = draw(figures.breakeven, of=none)
    assert texts(drawn).count("never") == len(never)
    assert "never, its calls are not cheaper" in drawn.description
    assert draw(figures.breakeven, of=clients).figure.axes[0].get_xscale() == "linear"
    assert draw(figures.breakeven, of=gpus).figure.axes[0].get_xscale() == "log"


def test_of_many_pairs_those_of_two_cells_are_shown(clients, draw):
    pairs = clients.tables["breakeven"]
    many = pd.concat(
        [pairs, *(pairs.query("comparison == 'resident'").assign(agents=n) for n in range(9, 40))]
    )
    drawn = draw(figures.breakeven, of=figures.Study({**clients.tables, "breakeven": many}, {}))
    assert len([t for t in texts(drawn) if "slot" in t]) == ROWS_MAX
    assert len([t for t in texts(drawn) if t.startswith("Served instead of")]) == 3


def test_a_zygotes_own_start_is_named_beside_what_it_started(gpus, draw):
    drawn = draw(figures.breakeven, of=gpus)
    assert "the zygote 5.50 s" in drawn.description
    assert "A zygote's own start is not counted" in drawn.caption


def test_memory_has_one_point_per_trial_and_device(study, draw):
    axes = draw(figures.memory).figure.axes[0]
    devices = cells.only(study.tables["devices"], study.setting)
    assert sum(len(c.get_offsets()) for c in axes.collections) == devices["in_use"].sum()


def test_an_agent_that_timed_out_is_seen_in_its_row(draw):
    drawn = draw(figures.timeline, Canvas(), "shared")
    assert "timed out" in texts(drawn)
    assert "data_engineer timed out in round 1" in drawn.description


def test_a_timeline_says_which_repeat_it_shows(draw):
    assert re.search(
        r"repeat \d of Parallel, 8 slots .* the one with the median cold makespan",
        draw(figures.timeline, Canvas(), "parallel").caption,
    )


def test_a_mode_that_was_not_run_in_the_headline_setting_is_shown_where_it_worked(tmp_path, draw):
    small, large = (
        Cell("auto_expand", 2, 4, "eager", "zygote", variant, {"memory_mib": mib})
        for variant, mib in (("small", 150), ("large", 450))
    )
    common = [Cell(mode, 1, 4, "eager", "zygote") for mode in ("sequential", "shared")]
    lines = [
        made_trials.make_trial(
            tmp_path,
            cell,
            repeat,
            costs=made_trials.Costs(budget_mib=cell.options.get("memory_mib", 2000)),
            warm_rounds=1,
        )
        for repeat in (1, 2)
        for cell in (*common, small, large)
    ]
    of = study_of(lines, tmp_path)
    drawn = draw(figures.timeline, Canvas(), "auto_expand", of=of)
    assert "variant large): the one with the median cold makespan of those that worked" in drawn.caption
    assert {"attempt 2", "failed"} <= set(texts(drawn))


def test_a_worker_that_was_ready_was_not_given_up_while_it_started(study, draw):
    agents = study.tables["agents"]
    cold = (agents["mode"] == "parallel") & (agents["round"] == 0)
    late = agents.assign(status=agents["status"].mask(cold, str(Status.CANCELLED)))
    cancelled = figures.Study({**study.tables, "agents": late}, {})
    assert "given up" not in texts(draw(figures.timeline, Canvas(), "parallel", of=cancelled))
    workers = study.tables["workers"]
    never = figures.Study({**cancelled.tables, "workers": workers.assign(ready_at_s=np.nan)}, {})
    assert "given up" in texts(draw(figures.timeline, Canvas(), "parallel", of=never))


def test_a_timeline_from_another_host_names_it(tmp_path, draw):
    near = [Cell(mode, 1, 4, "eager", "zygote") for mode in ("sequential", "parallel")]
    lines = [made_trials.make_trial(tmp_path, cell, 1, host="near", warm_rounds=1) for cell in near]
    far = Cell("shared", 1, 4, "eager", "zygote")
    lines.append(made_trials.make_trial(tmp_path, far, 1, host="far", warm_rounds=1))
    of = study_of(lines, tmp_path)
    assert ", host far): " in draw(figures.timeline, Canvas(), "shared", of=of).caption
    assert "host" not in draw(figures.timeline, Canvas(), "sequential", of=of).caption


def test_a_timeline_has_every_agent_and_every_device(draw):
    said = texts(draw(figures.timeline, Canvas(), "parallel"))
    assert {role.lower() for role in made_trials.ROLES} <= set(said)
    assert [t for t in said if t.startswith("slot ")] == [f"slot {i}" for i in range(8)] * 2


def test_a_timeline_has_what_happened_on_every_host(tmp_path, draw):
    of = study_of([made_trials.given_up(tmp_path, hosts=("near", "far"))], tmp_path)
    drawn = draw(figures.timeline, Canvas(), "auto_expand", of=of)
    assert "cold round, attempt 1: worked, 10.0 s; warm round 1, attempt 1: worked" in drawn.description
    assert len(drawn.figure.axes[0].patches) >= 12  # two agents, six rounds
    samples = of.tables["samples"]
    away = samples.assign(host="near", device_uuid="near/" + samples["device_uuid"], used_mib=100.0)
    both = figures.Study({**of.tables, "samples": pd.concat([samples, away])}, {})
    drawn = draw(figures.timeline, Canvas(), "auto_expand", of=both)
    shown = texts(drawn)
    assert [t for t in shown if t.startswith("slot ")][:4] == [
        "slot 0 of far", "slot 1 of far", "slot 0 of near", "slot 1 of near"
    ]  # fmt: skip
    assert shown.count("peak 500 of 640 MiB") == 2 and shown.count("peak 100 of 240 MiB") == 2


def test_a_devices_memory_is_measured_against_its_budget_as_everywhere_else(study, draw):
    samples = study.tables["samples"]
    driver = figures.Study({**study.tables, "samples": samples.assign(free_mib=samples["free_mib"] - 5)}, {})
    shown = texts(draw(figures.timeline, Canvas(), "parallel", of=driver))
    assert shown.count("peak 200 of 640 MiB") == 8
    assert all(" of 640 MiB" in line for line in draw(figures.memory).description.split("; "))


@pytest.mark.parametrize("narrow", [False, True])
def test_a_long_heading_has_two_lines_begins_with_the_engine_and_counts_no_characters(tmp_path, draw, narrow):
    of = study_of(made_trials.server_study(tmp_path, repeats=1), tmp_path)
    shown = texts(draw(figures.framework, Canvas(narrow), of=of))
    heading = "vllm, process start, threads, compile cache empty"
    assert [t.replace("\n", " ") for t in shown if t.startswith("vllm")].count(heading) == 2
    assert any("\n" in t for t in shown) == narrow
    assert not [t for t in shown if "characters)" in t or t.count("\n") > 1]


def test_a_label_is_cut_only_beyond_two_lines():
    for narrow in (False, True):
        short, long = (drawing.label_lines("a name of many words, " * n, Canvas(narrow)) for n in (4, 9))
        assert [len(short), len(long)] == [2, 2]
        assert " ".join(short) == ("a name of many words, " * 4).strip()
        assert long[-1].endswith("…") and " ".join(long)[:-1] in "a name of many words, " * 9
    assert len(drawing.label_lines("y" * 10_000, Canvas())) <= 2
    assert drawing.label_lines("", Canvas()) == []


@pytest.mark.parametrize("narrow", [False, True])
def test_memory_of_slots_is_called_simulated_wherever_it_shows(draw, narrow):
    for drawn in (draw(figures.memory, Canvas(narrow)), draw(figures.timeline, Canvas(narrow), "parallel")):
        assert any("simulated budget" in t for t in texts(drawn))
        assert "simulated budget" in drawn.caption


def test_a_figure_that_stands_alone_says_that_weights_are_random(written):
    for file in drawings(written):
        if not file.stem.endswith("-narrow"):
            assert "not language" in file.read_text(), file.name


def test_a_very_wide_interval_does_not_push_the_points_together(tmp_path, draw):
    cell = Cell("shared", 1, **ONE)
    slow = made_trials.Costs(token_s=0.2)
    lines = [made_trials.make_trial(tmp_path, cell, 1), made_trials.make_trial(tmp_path, cell, 2, costs=slow)]
    axes = draw(figures.cold_warm, of=study_of(lines, tmp_path)).figure.axes[0]
    largest = max(c.get_offsets()[:, 0].max() for c in axes.collections)
    assert axes.get_xlim()[1] < 1.3 * largest


# Missing data --------------------------------------------------------------------------------------


def test_a_figure_without_data_says_why(tmp_path):
    one = study_of([made_trials.make_trial(tmp_path, Cell("sequential", 1, **ONE), 1)], tmp_path)
    out = tmp_path / "figures"
    names = figures.write(one, out, png_dpi=40)
    index = {entry["name"]: entry for entry in json.loads((out / "figures.json").read_text())}
    assert list(index) == names
    assert "no mode that searches was run" in index["attempts"]["missing"]
    assert "several numbers of slots" in index["scaling"]["missing"]
    assert "several start states" in index["starts"]["missing"]
    assert "replays were off" in index["framework"]["missing"]
    assert "no agent was measured alone" in index["interference"]["missing"]
    assert index["breakeven"]["missing"] == ""
    assert "no chain of agents" in index["chain"]["missing"]
    for name in names:
        assert (out / f"{name}.svg").exists()
        assert (out / f"{name}-narrow.svg").exists()
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Not measured: no mode that searches was run" in (out / "attempts.svg").read_text()


def test_a_study_in_which_nothing_worked_is_drawn(tmp_path):
    nothing = study_of([made_trials.make_trial(tmp_path, Cell("parallel", 1, **ONE), 1)], tmp_path)
    figures.write(nothing, tmp_path / "figures", png_dpi=40)
    assert "out of memory (1 of 1)" in (tmp_path / "figures" / "cold_warm.svg").read_text()


def test_samples_that_were_lost_are_not_drawn_as_zero(study, draw):
    lost = dict(study.tables)
    lost["samples"] = lost["samples"].assign(util_pct=np.nan)
    drawn = draw(figures.timeline, Canvas(), "parallel", of=figures.Study(lost, study.thresholds))
    assert "not measured" in texts(drawn)


# Files ---------------------------------------------------------------------------------------------


def test_svg_is_xml_with_a_title_a_description_and_text_as_text(written):
    for file in drawings(written):
        root = ET.fromstring(file.read_text())
        assert root.get("role") == "img"
        assert root.find(f"{SVG}title").text
        assert root.find(f"{SVG}desc").text
        assert len(root.findall(f".//{SVG}text")) > 1


def test_svg_colours_are_variables_with_a_light_and_a_dark_value(written):
    text = (written / "cold_warm.svg").read_text()
    assert "prefers-color-scheme:dark" in text
    styles = re.findall(r'style="([^"]*)"', text)
    plain = [s for s in styles if re.search(r"(fill|stroke): #", s) and "var(--" not in s]
    assert plain == []


def test_the_same_tables_give_the_same_bytes(study, written, tmp_path):
    figures.write(study, tmp_path, png_dpi=40)
    for file in sorted(written.iterdir()):
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name


def test_every_figure_has_a_question_and_a_caption_with_n_or_the_repeat(written):
    for entry in json.loads((written / "figures.json").read_text()):
        assert entry["question"].endswith("?")
        assert entry["missing"] or re.search(r"n = \d|repeat \d|every trial a point", entry["caption"])


def test_names_from_outside_cannot_break_a_figure(study, tmp_path):
    hostile = "$x_1$ <b>&\x00\u202e" + "y" * 10_000
    changed = dict(study.tables)
    changed["agents"] = changed["agents"].assign(agent=hostile)
    figures.write(figures.Study(changed, {}), tmp_path, png_dpi=40)
    text = (tmp_path / "timeline_parallel.svg").read_text()
    ET.fromstring(text)
    assert "$x" in text
    assert "<b>" not in text
    assert "y" * 100 not in text


def test_many_cells_are_cut_to_what_can_be_read(tmp_path, study, draw):
    trials = study.tables["trials"]
    many = [trials.assign(gpus=g, trial_id=trials["trial_id"] + f"-{g}") for g in range(1, 40)]
    crowded = figures.Study({**study.tables, "trials": pd.concat(many)}, {})
    labels = [t for t in texts(draw(figures.cold_warm, of=crowded)) if "slot" in t]
    assert len(labels) == ROWS_MAX


# Colours -------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
}


def seen(colour: str, sight: str) -> np.ndarray:
    """A colour in OKLab times 100, as it is seen. Ottosson 2020."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
    cones = np.cbrt(
        np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]) @ linear
    )
    to_lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return 100 * np.array(to_lab) @ cones


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_modes_can_be_told_apart_by_everybody(scheme, sight):
    colours = [seen(getattr(c, scheme), sight) for c in palette.modes().values()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)) > 12


@pytest.mark.parametrize("name", ["colorblind", "deep", "muted"])
def test_a_mode_has_the_same_hue_on_light_and_dark(name):
    for colour in palette.modes(name).values():
        light, dark = (
            complex(*seen(shade, "usual")[1:]) for shade in (colour.light, colour.dark)
        )  # a and b of OKLab
        turned = np.degrees(np.angle(dark / light))
        assert abs(turned) <= 15 or min(abs(light), abs(dark)) < 3, (colour, turned)  # grey has no hue


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_stages_that_touch_can_be_told_apart_by_colour_or_hatch(scheme, sight):
    colours = palette.stages()
    order = ["failed", *STAGES]
    usual = [("import", "load"), ("spawn", "load"), ("load", "prefill"), ("load", "queue")]
    for one, other in [*itertools.pairwise(order), *usual]:
        apart = np.linalg.norm(
            seen(getattr(colours[one], scheme), sight) - seen(getattr(colours[other], scheme), sight)
        )
        assert apart > 5 or palette.hatch(one) != palette.hatch(other), (one, other)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["colorblind", "deep", "muted"])
def test_modes_stand_out_from_the_page_in_every_palette(name, scheme):
    for colour in palette.modes(name).values():
        ratio = palette.contrast_ratio(getattr(colour, scheme), palette.SURFACE[scheme])
        assert ratio >= palette.CONTRAST, colour.name


def test_text_stands_out_from_the_page():
    for colour in (palette.INK, palette.QUIET, palette.BAD, palette.GOOD):
        for scheme, surface in palette.SURFACE.items():
            assert palette.contrast_ratio(getattr(colour, scheme), surface) >= 4.5


def test_a_colour_means_one_thing():
    colours = palette.all_colours()
    assert len({c.light for c in colours}) == len(colours)
    assert len({c.name for c in colours}) == len(colours)


def test_a_mode_has_its_colour_in_every_figure(study, draw):
    from matplotlib.colors import to_hex

    colour = Canvas().mode("parallel")
    bars = {
        to_hex(p.get_facecolor()) for p in draw(figures.timeline, Canvas(), "parallel").figure.axes[0].patches
    }
    points = {
        to_hex(face)
        for function in (figures.cold_warm, figures.memory, figures.starts)
        for c in draw(function).figure.axes[0].collections
        for face in c.get_facecolor()
    }
    assert colour in bars
    assert colour in points
