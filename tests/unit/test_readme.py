"""Every figure in the README stands in a committed file, and its table of modes is the registry's."""

import csv
import re
import statistics

import pytest

from crewbench.modes import MODES

REFERENCE = "2x-h200-core"


@pytest.fixture
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def rows_of(root, path):
    with open(root / "results/reference" / path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def summary(root):
    rows = rows_of(root, f"{REFERENCE}/tables/summary.csv")
    return {(r["mode"], r["gpus"], r["variant"], r["metric"], r["baseline"]): r for r in rows}


def table(readme, first_header):
    """The rows of the Markdown table whose header begins so, as lists of cells."""
    lines = readme.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])


def shown(row):
    def three(text):
        value = float(text)
        digits = 3 - len(str(int(abs(value)))) if value >= 1 else 3
        return f"{value:.{max(0, digits)}f}"

    return f"{three(row['estimate'])} [{three(row['low'])}, {three(row['high'])}]"


def test_the_modes_are_those_of_the_registry(readme):
    rows = [r for r in table(readme, "mode") if len(r) == 3]
    assert [(r[0], r[1]) for r in rows] == [(f"`{m.name}`", m.idea) for m in MODES.values()]


def test_the_measured_table_says_what_the_reference_study_holds(readme, summary):
    rows = table(readme[readme.index("## What broke first") :], "mode")
    assert len(rows) == 8
    for cells in rows:
        mode = re.search(r"`(\w+)`", cells[0])[1]
        budget = re.search(r"(\d+) GiB", cells[0])
        key = (mode, cells[1], f"budget-{budget[1]}gib" if budget else "base")
        cold, warm, speed = (summary[*key, m, ""] for m in ("cold_s", "warm_s", "warm_tokens_per_s"))
        assert cells[2] == f"{cold['ok']} of {cold['trials']}"
        if cold["ok"] == "0":
            assert cells[3] == "out of memory" and cold["oom"] == cold["trials"]
            continue
        assert cells[3:5] == [shown(cold), shown(warm)]
        assert cells[5] == shown(speed).split(" ")[0]


STUDY = "1x-h200-study/tables"


@pytest.fixture
def study(root):
    return lambda name: rows_of(root, f"{STUDY}/{name}.csv")


def one(rows, **wanted):
    (row,) = (r for r in rows if all(r[name] == value for name, value in wanted.items()))
    return row


def test_the_table_of_one_gpu_says_what_its_study_holds(readme, study):
    of = {
        "`served`, vLLM, compiled before": ("served", "base", "filled"),
        "`served`, vLLM, nothing compiled": ("served", "base", "empty"),
        **{f"`{mode}`": (mode, "fast-load", "none") for mode in ("parallel", "sequential", "shared")},
        "*other work:* `cooperative`": ("cooperative", "fast-load", "none"),
    }
    told = table(readme, "eight agents")
    assert [cells[0] for cells in told] == list(of)
    for cells in told:
        mode, variant, cache = of[cells[0]]
        cell = {"mode": mode, "agents": "8", "variant": variant, "compile_cache": cache, "baseline": ""}
        cold, warm, speed = (
            one(study("summary"), metric=m, **cell) for m in ("cold_s", "warm_s", "warm_tokens_per_s")
        )
        assert cells[1] == f"{cold['ok']} of {cold['trials']}"
        known = [shown(row) if row["low"] else shown_alone(row) for row in (cold, warm)]
        assert cells[2:] == [*known, shown_alone(speed)]


def shown_pct(row):
    """A difference in a file of verdicts."""
    value, low, high = (f"{float(row[f'{name}_pct']):.2f}" for name in ("difference", "low", "high"))
    return f"{value} % [{low}, {high}]"


def shown_alone(row):
    return shown({**row, "low": "1", "high": "1"}).split(" ")[0]


def test_what_is_said_of_one_gpu_is_what_its_study_holds(readme, study):
    text = " ".join(readme.split())
    summary, verdict = study("summary"), study("verdict")
    for mode in ("parallel", "shared"):
        row = one(verdict, mode=mode, start="zygote", engine="eager", variant="fast-load")
        assert (row["first"], row["at_agents"]) == ("parallelism", "8")
        assert f"{100 * float(row['value']):.1f} %" in text
    for mode, relation in (("parallel", "device"), ("shared", "worker")):
        for agents in "28":
            row = one(summary, mode=mode, agents=agents, metric=f"slowdown_{relation}")
            assert shown(row).replace(" [", " × [") in text
    for start in ("zygote", "process", "disk"):
        cell = {"agents": "1", "engine": "eager", "variant": "fast-load", "start": start}
        assert shown(one(summary, metric="cold_ttft_s", **cell)).replace(" [", " s [") in text
    repaid = study("breakeven")
    compiling = one(repaid, comparison="engine", b_compile_cache="empty")
    servers = [
        one(repaid, a_mode="parallel", b_mode="served", b_compile_cache=c) for c in ("filled", "empty")
    ]
    assert [row["n"] for row in (compiling, *servers)] == ["1"] * 3
    first, filled, empty = (f"{float(row['calls']):.3g}" for row in (compiling, *servers))
    assert f"after {first} calls (one trial)" in text
    assert f"A vLLM server instead of eight eager copies after {filled} calls" in text
    unsure = one(repaid, comparison="engine", b_compile_cache="filled")
    assert (unsure["n"], unsure["outcome"]) == ("2", "not shown")
    assert "two trials do not show that a call is cheaper" in text
    zygotes = [
        float(row["zygote_s"])
        for row in study("trials")
        if (row["agents"], row["engine"], row["variant"]) == ("1", "eager", "fast-load") and row["zygote_s"]
    ]
    assert f"took {statistics.median(zygotes):.1f} s (median) to start" in text
    assert f"calls, or {empty} where nothing was compiled before" in text


def test_the_speed_up_in_the_text_is_the_reference_studys(readme, summary):
    (row,) = (
        r for key, r in summary.items() if key[:4] == ("parallel", "1", "base", "speedup_cold") and key[4]
    )
    assert shown(row).replace(" [", " × [") in " ".join(readme.split())


def test_what_neighbours_and_a_spread_copy_cost_is_what_was_measured(readme, root):
    text = " ".join(readme.split())
    rows = rows_of(root, "2x-h200-neighbours/tables/summary.csv")
    for relation, said in (
        ("worker", "one of two threads"),
        ("device", "beside a copy"),
        ("host", "with a card"),
    ):
        found = shown(one(rows, metric=f"slowdown_{relation}")).replace(" [", " × [")
        assert re.search(rf"{re.escape(found)}( its time alone as)? {said}", text), (relation, found)
    alone = {"mode": "parallel", "agents": "1", "baseline": ""}
    spread, whole = ({**alone, "variant": v} for v in ("spread", "fast-load"))
    peak = [f"{float(one(rows, metric='peak_mib', **cell)['estimate']):,.0f} MiB" for cell in (spread, whole)]
    assert f"memory on each, {peak[0]} against {peak[1]}" in text
    warm = [shown(one(rows, metric="warm_s", **cell)).replace(" [", " s [") for cell in (spread, whole)]
    assert f"{warm[0]} a warm round against {warm[1]}" in text


def test_what_stays_loaded_took_what_was_measured_once(readme, root):
    text = " ".join(readme.split())
    rows = rows_of(root, "2x-h200-modes/tables/trials.csv")
    times = {}
    for mode in ("actors", "parallel", "served"):
        row = one(rows, mode=mode, gpus="2", agents="8", status="ok")
        times[mode] = [f"{float(row[name]):.3g} s" for name in ("cold_s", "warm_s")]
    assert "eight Ray actors took {} cold and {} warm".format(*times["actors"]) in text
    assert "eight forked workers {} and {}".format(*times["parallel"]) in text
    assert "{} cold with their code compiled before, and {} warm".format(*times["served"]) in text
    assert one(rows, mode="served")["compile_cache"] == "filled"


def test_how_true_the_times_are_is_what_the_validity_run_found(readme, root):
    text = " ".join(readme.split())
    place = "1x-h200-validity/longer-prompt"
    rows = rows_of(root, f"{place}/verdicts.csv")
    for claim, said in (
        ("inference_raw", "is off by"),
        ("inference_benchmark", "way of timing by"),
    ):
        row = one(rows, claim=claim)
        assert row["outcome"] == "met" and row["n"] == "12"
        assert f"{said} {shown_pct(row)}" in text
    tokens = int(one(rows_of(root, f"{place}/environment.csv"), key="tokens prompt")["value"])
    assert f"twelve interleaved blocks on an H200, {tokens:,} prompt tokens" in text


def test_how_many_agents_would_fit_is_the_references(readme, root):
    found = rows_of(root, f"{REFERENCE}/tables/capacity.csv")
    rows = {(r["mode"], r["gpus"], r["context_tokens"]): r for r in found}
    few, long, shared = (
        rows[key] for key in (("parallel", "1", "264"), ("parallel", "1", "32768"), ("shared", "1", "32768"))
    )
    over = [float(row["measured_over_predicted"]) for row in (few, shared)]
    said = (
        f"By memory alone one card has room for {few['most_agents']} agents with a copy each, or "
        f"{long['most_agents']} with 32,768 tokens each; sharing one copy, for {shared['most_agents']} with "
        "32,768 tokens each.** Predicted from the checkpoint's sizes; the predicted memory is multiplied by "
        f"what measured peaks had over it ({over[0]:.2f} and {over[1]:.2f})."
    )
    assert said in " ".join(readme.split())


def test_every_link_to_a_file_leads_somewhere(readme, root):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert len(targets) > 8
    assert [t for t in targets if not (root / t).exists()] == []


def test_the_serving_table_says_what_the_reference_holds(readme, root):
    names = {
        "`served`, vLLM, clients in processes": ("served", "vllm", "base"),
        "`served`, vLLM, clients in threads": ("served", "vllm", "threads"),
        "`served`, Transformers' server": ("served", "transformers-serve", "base"),
        "`sequential`, eager, cuDNN attention": ("sequential", "eager", "base"),
    }
    rows = {
        (r["mode"], r["engine"], r["variant"], r["metric"]): r
        for r in rows_of(root, "1x-h200-serving/tables/summary.csv")
        if not r["baseline"]
    }
    told = table(readme, "deployment")
    assert [cells[0] for cells in told] == list(names)
    for cells in told:
        metrics = ("cold_s", "warm_s", "replay_s", "decode_tokens_per_s")
        found = [rows[*names[cells[0]], metric] for metric in metrics]
        assert cells[1] == f"{found[0]['ok']} of {found[0]['trials']}"
        assert cells[2:] == [f"{float(row['median']):.3g}" for row in found]
    for variant, seconds in (("threads", "0.145"), ("base", "0.028")):
        warm, alone = (float(rows["served", "vllm", variant, m]["median"]) for m in ("warm_s", "replay_s"))
        assert f"{warm - alone:.3f}" == seconds and f"{seconds} s" in readme


def test_the_attention_table_says_what_the_probe_measured(readme, root):
    rows = rows_of(root, "1x-h200-probes/attention.csv")
    for attention, thread, *shown_ms in table(readme, "attention"):
        ms = [
            1000 * float(r["decode_s_per_token"])
            for r in rows
            if (r["attention"], r["thread"]) == (attention, thread)
        ]
        assert shown_ms == [f"{x:.1f}" for x in (min(ms), statistics.median(ms), max(ms))]


def test_the_throughputs_are_those_of_the_reference(readme, root):
    place = "1x-h200-throughput"
    rows = rows_of(root, f"{place}/measured.csv")
    said = {row["key"]: row["value"] for row in rows_of(root, f"{place}/environment.csv")}
    tokens = int(said["agents"]) * int(said["tokens output"])
    sides = []
    for side in ("crew", "calls", "bench"):
        rates = sorted(tokens / float(r["seconds"]) for r in rows if r["side"] == side)
        sides.append([f"{rate:.1f}" for rate in (rates[0], statistics.median(rates), rates[-1])])
    section = readme[readme.index("## What CrewAI takes") :]
    assert [cells[1:] for cells in table(section, "asked by")] == sides
    for row in rows_of(root, f"{place}/verdicts.csv"):
        assert shown_pct(row) in section
        assert row["outcome"] == "met"


def test_the_engines_that_are_said_to_agree_do(root):
    rows = rows_of(root, "1x-h200-quality/quality.csv")
    assert {r["engine"]: r["agreement"] for r in rows} == dict.fromkeys(
        ("eager", "compiled", "vllm"), "agrees"
    )
    for row in rows:
        for error in ("logit_error", "logprob_error"):
            if row[error]:
                assert float(row[error]) < 1.1 * float(row[f"plain_{error}"])


def test_what_a_trial_costs_on_a_cluster_is_the_references(root):
    page = (root / "docs/cluster.md").read_text(encoding="utf-8")
    columns = ("trials", "jobs", "slot_s_per_trial", "wall_s_per_trial")
    measured = [[row[name] for name in columns] for row in rows_of(root, "cluster/overhead.csv")]
    lines = [line for line in page[page.index("## What a job costs") :].splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines[1:]] == measured
