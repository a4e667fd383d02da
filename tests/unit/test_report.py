"""The page: it answers first, shows what failed, runs nothing but its own script, and fetches nothing."""

import base64
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import made_trials
from crewbench import figures, metrics, quality, report, stats, tables, verdict
from crewbench.figures.study import QUESTIONS
from crewbench.records import STAGES, Status
from crewbench.stats import Estimate
from crewbench.trial import Cell
from crewbench.words import estimate, interval, number

ROOT = Path(__file__).resolve().parents[2]
ONE = {"agents": 8, "engine": "eager", "start": "zygote"}
NASTY = '<script>alert("x")</script><img src=//x onerror=alert(1)>\x1b[31m\u202e' + "z" * 1_000_000
SKIPPED = [{"mode": "sequential", "gpus": 4, **ONE, "variant": "base", "reason": "runs on one GPU, not on 4"}]


class Page(HTMLParser):
    """What a test asks of the page: elements with attributes, and text outside of style, script and SVG."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._silent += tag in ("style", "script", "svg")

    def handle_endtag(self, tag):
        self._silent -= tag in ("style", "script", "svg")

    def handle_data(self, data):
        if not self._silent:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(lines, root: Path, skipped=()) -> tuple[str, dict]:
    manifest = tables.read_manifest(made_trials.write_manifest(root, lines, skipped))
    built = tables.build(manifest)
    figures.write(figures.Study(built, {}), root / "figures", png_dpi=40)
    return report.build(manifest, built, root / "figures"), built


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    """Every mode twice; an agent of `shared` timed out with a nasty message; a taint; a skipped cell."""
    root = tmp_path_factory.mktemp("report")
    lines = []
    for repeat in (1, 2):
        for cell in [*made_trials.study_cells(), Cell("parallel", 2, **ONE)]:
            fail = (1, "agent3", Status.TIMEOUT, NASTY) if cell.mode == "shared" and repeat == 2 else None
            taints = ["another program used the CPU"] if cell.mode == "cooperative" and repeat == 1 else []
            lines.append(
                made_trials.make_trial(
                    root / "trials",
                    cell,
                    repeat,
                    warm_rounds=1,
                    order=len(lines),
                    fail=fail,
                    taints=taints,
                    texts={"product_manager": NASTY},
                )
            )
    return page_of(lines, root, SKIPPED)[0]


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_the_pages_title_tells_studies_in_a_browsers_tabs_apart(html, clients_html):
    titles = [re.search(r"<title>(.*?)</title>", text)[1] for text in (html, clients_html)]
    own = "Where should the models live?"
    assert titles == [
        f"zygote, process start; 6 modes; 8 slots; 8 agents; tiny: {own}",
        f"eager, vllm; process, zygote start; 5 modes; 3 slots; 1 to 3 agents; tiny: {own}",
    ]
    assert all(f"<h1>{own}</h1>" in text for text in (html, clients_html))


# It answers ----------------------------------------------------------------------------------------


def test_the_first_screen_answers_what_is_fastest_what_is_needed_and_what_failed(page):
    text = page.text
    order = ["What breaks first: memory, latency, parallelism or orchestration?",
             "Memory (simulated budget): Auto-expanded with 8 agents on 1 slot", "What to use for 8 agents?",
             "Which mode is fastest cold?", "Parallel on ", "Which mode is fastest warm?",
             "How many CPU slots does a copy per agent need?", "3 slots", "What failed?", "3 of 18 trials",
             "What breaks first, and what bounds each mode", "The numbers"]  # fmt: skip
    place = 0
    for words in order:
        place = text.index(words, place)


def test_fastest_is_said_with_its_interval_n_and_what_it_is_compared_with(page):
    assert re.search(r"[\d.]+ × \[[\d.]+, [\d.]+\] as fast as Sequential on 1 slot[.:,]", page.text)
    assert "Under 5 repeats no difference is called significant." in page.text


def test_the_first_out_of_memory_of_a_cell_says_who_held_what_beside_what_was_predicted(html):
    table = html.split("The first out-of-memory of each cell</h3>", 1)[1].split("</table>")[0]
    rows = [re.sub(r"(<[^>]+>)+", "|", row) for row in re.findall(r"<tr>.*?</tr>", table, re.S)][1:]
    assert [row.split(",")[0] for row in rows] == ["|Parallel", "|Auto-expanded"]  # once, however often met
    three = "worker0: 200.0 MiB; worker1: 200.0 MiB; worker2: 200.0 MiB"
    assert f"|load, cold round|200|40.0|{three}|200|200|" in rows[1]
    assert "|worker0: 200.0 MiB; worker2: 200.0 MiB; worker4: 200.0 MiB|" in rows[0]


def test_a_study_without_an_out_of_memory_has_no_table_of_them(tmp_path):
    lines = [made_trials.make_trial(tmp_path / "trials", Cell("shared", 1, **ONE), 1, warm_rounds=1)]
    assert "out-of-memory of each cell" not in page_of(lines, tmp_path)[0]


def test_the_device_count_rests_on_the_attempts_that_failed(page):
    assert "1 slot: out of memory in 2 of 2 trials." in page.text
    assert "2 slots: out of memory in 2 of 2 trials." in page.text
    assert "The memory budget is simulated." in page.text


def test_a_simulated_budget_certifies_nothing_and_says_so(page):
    said = row(page, "The fewest slots that fit", "Auto-expanded")
    assert "simulated budget" in said
    assert "It certifies nothing, and no prediction is judged by it." in page.text


def test_a_workflows_cost_charges_what_failed(page):
    assert "nothing worked" in row(page, "What a workflow that worked costs", "Parallel, 2 slots")


def test_modes_are_compared_pair_by_pair(page):
    said = row(page, "Which modes are told apart", "Sequential, 1 slot")
    assert " too few repeats" in said


def test_an_agent_that_timed_out_is_seen(page):
    assert "1 trial timed out: Shared ×1." in page.text
    assert "data engineer: timed out in round 1" in page.text
    assert "1 of 2" in page.text


def test_who_failed_is_as_many_steps_as_are_counted(tmp_path):
    """Of a search the last attempt alone, with steps that were cancelled; who ended alike stands together."""
    costs = made_trials.Costs(budget_mib=300.0)
    lines = [made_trials.make_trial(tmp_path, Cell("auto_expand", 2, 4, "eager", "zygote"), 1, costs=costs)]
    html, built = page_of(lines, tmp_path)
    assert len(built["attempts"]) == 2
    cancelled = "product manager, system architect: cancelled in round 0"
    said = f"{cancelled}; ai researcher, data engineer: out of memory in round 0"
    (row,) = re.findall(r"<tr><th[^\n]*<code>auto_expand[^\n]*</tr>", html)
    assert [text for text in re.split(r"<[^>]+>", row) if text][2:4] == ["4 of 4", said]


def test_an_agent_that_was_skipped_later_is_told_with_how_it_ended():
    import pandas as pd

    steps = [
        ("b_dev", "oom", 0), ("a", "error", 1), ("devops", "oom", 0),
        ("b_dev", "skipped", 1), ("devops", "skipped", 1), ("a", "skipped", 2), ("a", "skipped", 3),
    ]  # fmt: skip
    assert report._who(pd.DataFrame(steps, columns=["agent", "status", "round"])) == (
        "b dev, devops: out of memory in round 0, skipped in round 1; "
        "a: failed in round 1, skipped in rounds 2, 3"
    )


def test_one_agent_is_not_one_agents(tmp_path):
    lines = [made_trials.make_trial(tmp_path, Cell("sequential", 1, 1, "eager", "zygote"), 1)]
    html, _ = page_of(lines, tmp_path)
    assert "1 agent, 1 mode, " in html and "1 agents" not in html


def test_what_failed_on_another_host_of_a_trial_is_seen(tmp_path):
    lost = made_trials.make_trial(
        tmp_path,
        Cell("actors", 2, 2, "eager", "zygote"),
        1,
        fail=(0, "agent1", Status.ERROR, "was lost with its host far"),
        host_of=lambda row: "far" if getattr(row, "worker", "") == "worker1" else None,
    )
    html, _ = page_of([lost, made_trials.given_up(tmp_path, hosts=("far", "box"))], tmp_path)
    assert "system architect: failed in round 0" in html
    (refused,) = re.findall(r"<tr>[^\n]*generate, warm round, agent1.*?</tr>", html, re.S)
    assert re.sub(r"(<[^>]+>|\s)+", "|", refused).endswith("|100|20.0|worker0:|500|MiB|–|400|")


def test_trials_that_ran_out_of_memory_are_seen(page):
    assert "2 trials out of memory: Parallel ×2." in page.text
    assert "0 of 2" in page.text


def test_a_skipped_cell_has_its_reason(page):
    assert "runs on one GPU, not on 4" in page.text


def test_a_taint_is_shown(page):
    assert "cooperative__g1__a8__eager__zygote__base__r1" in page.text
    assert "another program used the CPU" in page.text


def test_other_work_is_not_compared(page):
    assert page.text.count("Other work, not compared") == 2
    assert "The same work" in page.text


def test_random_weights_and_simulated_budgets_are_said(page):
    assert "Random weights: this measures speed and memory, not language." in page.text
    assert "Simulated budget" in page.text


def test_the_environment_and_the_glossary_are_there(page):
    assert "packages.torch" in page.text
    assert "2.13.0" in page.text
    assert "zygote (forked from a process that has done the imports)" in page.text


@pytest.mark.parametrize(
    "word", ["variant", "engine", "eager", "compiled", "settled", "bound by", "a busy device", *STAGES]
)
def test_every_word_that_the_page_uses_has_a_line_in_the_glossary(html, word):
    glossary = html[html.index('id="glossary-title"') :]
    assert re.search(rf"<dt>{word}</dt><dd>[A-Z][^<]+\.</dd>", glossary)


def test_a_variants_name_can_be_looked_up_with_its_options(tmp_path):
    told = {"base": {"loader": None}, "fast": {"loader": "parallel", "memory_mib": None}, "unused": {}}
    fast = Cell("shared", 1, 2, "eager", "zygote", "fast", {"loader": "parallel"})
    lines = [
        made_trials.make_trial(tmp_path, cell, 1) for cell in (Cell("shared", 1, 2, "eager", "zygote"), fast)
    ]
    skipped = [{"mode": "sequential", "gpus": 4, **ONE, "variant": "gone", "reason": "runs on one GPU"}]
    path = made_trials.write_manifest(tmp_path, lines, skipped, config={"variants": told})
    manifest = tables.read_manifest(path)
    built = tables.build(manifest)
    figures.write(figures.Study(built, {}), tmp_path / "figures", png_dpi=40)
    page = report.build(manifest, built, tmp_path / "figures")
    said = page[page.index('id="variants"') : page.index("<h3>Words</h3>")]
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", said) == [
        ("base", "no option is set"),
        ("fast", "loader = parallel"),
        ("gone", "not in the manifest"),
    ]


def test_engines_that_nobody_checked_are_a_sentence_and_no_table(tmp_path):
    lines = [made_trials.make_trial(tmp_path, Cell("shared", 1, 2, "eager", "zygote"), 1)]
    check = made_trials.make_check(tmp_path, "eager")
    (tmp_path / "eager" / quality.RECORD).unlink()
    manifest = tables.read_manifest(made_trials.write_manifest(tmp_path, lines, checks=[check]))
    built = tables.build(manifest)
    figures.write(figures.Study(built, {}), tmp_path / "figures", png_dpi=40)
    page = report.build(manifest, built, tmp_path / "figures")
    section = page[page.index("Does each engine compute") : page.index("Tainted trials</h3>")]
    assert "<p>Not measured of eager: the check was not made.</p>" in section
    assert "<table" not in section and "eager__d1" not in section


def test_the_wall_time_of_the_trials_stands_against_its_lower_bound(page):
    said = (
        "18 trials, each alone on the host, in the order drawn from the seed, 2 repeats of a cell. "
        "1,065 s from the first start to the last end, 1.33 × the lower bound, their sum."
    )
    assert said in page.text


def test_every_figure_has_a_caption_and_its_words(page):
    drawn = [a["id"] for a in page.all("figure")]
    stages = [f"stages_{start}" for start in ("process", "zygote", "resident")]
    others = [n for n in QUESTIONS if n not in ("cold_warm", "stages", "chain", "engines")]
    assert drawn == [f"figure-{n}" for n in ("chain", "cold_warm", *stages, *others)] + [
        f"figure-timeline_{m}"
        for m in ("parallel", "auto_expand", "sequential", "shared", "cooperative", "hierarchical")
    ]
    measured = len(drawn) - 2  # there is no replay, and no agent alone
    assert "figure-engines" in [a.get("id") for a in page.all("li")]
    assert "Not measured: no device's memory bandwidth is known: a CPU slot has no memory" in page.text
    assert len(page.all("figcaption")) == measured
    assert len(page.all("svg")) == 2 * measured


def test_nothing_that_is_missing_reads_as_a_number(page):
    assert not re.search(r"\b(nan|NaN|None|inf)\b", page.text)


# What else costs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clients_html(tmp_path_factory) -> str:
    """Replays, an agent alone, a server."""
    root = tmp_path_factory.mktemp("clients")
    return page_of(made_trials.client_study(root / "trials"), root)[0]


@pytest.fixture(scope="module")
def clients(clients_html) -> Page:
    return Page(clients_html)


def row(page: Page, table: str, cell: str) -> str:
    """The text of a table's row from its heading on."""
    text = page.text[page.text.index(table) :]
    return re.sub(r"\s+", " ", text[text.index(cell) :])[:300]


def test_the_frameworks_cost_stands_against_the_goal(clients):
    said = row(clients, "Goal: at most 1.05 ×", "Served, 1 slot, 3 agents, vllm")
    assert re.search(r"[\d.]+ ×\[[\d.]+, [\d.]+\].*80.0 ?0 ?inside, but 10 trials are needed", said)


def test_agents_beside_others_stand_against_one_alone_or_say_why_not(clients):
    said = row(clients, "Worked beside", "Shared, 1 slot, 3 agents, eager, process start")
    assert re.search(r"others on the same worker.*2.4\d ×\[[\d.]+, [\d.]+\]Parallel, 1 slot, 1 agent", said)
    assert "no agent was measured alone (engine vllm" in clients.text


def test_a_time_for_a_token_counts_the_trials_behind_it(clients_html, html):
    """Those with an agent alone beside them and those without."""
    (table,) = re.findall(r'aria-label="How much agents slow each other".*?</table>', clients_html, re.S)
    rows = re.findall(r"<tr><th scope=\"row\".*?</tr>", table, re.S)
    assert len(rows) == 7 and all(row.endswith("<td>3</td></tr>") for row in rows)
    assert "–" in rows[-1]


def test_where_no_agent_was_alone_the_columns_for_it_are_left_out_and_it_is_said_once(html):
    section = html[html.index('<figure id="figure-interference"') : html.index('id="figure-breakeven"')]
    headings = re.findall(r'<th scope="col">(.*?)</th>', section)
    assert headings == ["Cell", "Worked beside", "Others at once", "ms a token", "Trials"]
    assert section.count("no agent was measured alone") == 1


def test_a_column_of_the_numbers_that_no_cell_has_is_a_line_and_no_dashes(tmp_path, html):
    lines = [made_trials.make_trial(tmp_path, Cell("shared", 1, 2, "eager", "zygote"), r) for r in (1, 2)]
    alone, _ = page_of(lines, tmp_path)
    named = 'aria-label="Headline numbers by mode".*?</table>'
    without, with_ = (re.search(named, text, re.S)[0] for text in (alone, html))
    assert "against sequential" in with_ and "against sequential" not in without
    assert "–" not in without
    assert "No cell has a number for: against sequential." in alone
    assert "No cell has a number for" not in html


def test_repayment_is_said_in_calls_and_rounds(clients):
    said = row(clients, "Repaid after calls", "Parallel, 3 slots, 3 agents")
    assert re.search(r"resident instead of fresh, eager3.0\d\[[\d.]+, [\d.]+\]1.00", said)


def test_what_says_why_a_pair_is_not_repaid_stands_once(clients_html):
    (table,) = re.findall(r'aria-label="Calls until a dearer start is repaid".*?</table>', clients_html, re.S)
    assert re.findall(r'<th scope="col">(.*?)</th>', table)[-1] == "Repeats"
    assert "its calls are not cheaper" not in table
    assert "never: a call is not cheaper" in clients_html


def test_servers_have_a_table_where_there_are_any(clients, page):
    said = row(clients, "What the servers say of themselves", "Served, 1 slot, 3 agents, vllm")
    assert re.search(r"50.0 %0.*at most 3.00.*at most 3.00 %", said)
    assert "What the servers say of themselves" not in page.text


# Inert ---------------------------------------------------------------------------------------------


def test_text_of_models_and_programs_is_inert(html, page):
    assert html.count("<script") == len(page.all("script")) == 1
    assert page.all("img") == []
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert '<script>alert("x")</script>' in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)


def test_the_policy_lets_the_pages_own_script_run_and_no_other(html, page):
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert script == (ROOT / "scripts/crewbench/report/page.js").read_text()
    told = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{told}';" in policy


def test_a_megabyte_of_one_line_is_cut(html):
    assert "z" * 600 not in html
    assert len(html) < 3_000_000


def test_nothing_is_fetched(html, page):
    elsewhere = set(re.findall(r"https?://[^\s\"'<)]+", html))
    assert elsewhere == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in html
    assert not re.findall(r"url\((?!#)", html)
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("href", "xlink:href", "src", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:")), (tag, attrs)


# For everybody -------------------------------------------------------------------------------------


def test_ids_are_unique_and_what_refers_to_them_finds_them(html, page):
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", html))
    for _, attrs in page.elements:
        wanted |= {attrs[n][1:] for n in ("href", "xlink:href") if (attrs.get(n) or "").startswith("#")}
        wanted |= set((attrs.get("aria-labelledby") or "").split())
    assert wanted <= set(ids)


def test_headings_come_in_order(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_every_table_has_column_and_row_headings_and_a_name(page):
    scopes = [attrs.get("scope") for attrs in page.all("th")]
    assert None not in scopes
    assert {"col", "row", "rowgroup"} <= set(scopes)
    regions = [a for a in page.all("div") if a.get("role") == "region"]
    assert len(regions) == len(page.all("table"))
    assert all(a["aria-label"] and a["tabindex"] == "0" for a in regions)


def test_every_drawing_has_a_name_and_a_description(page):
    assert all(a.get("role") == "img" and a.get("aria-labelledby") for a in page.all("svg"))


def test_colours_of_the_page_can_be_read_in_light_and_dark(html):
    from crewbench import palette

    css = (ROOT / "scripts/crewbench/report/style.css").read_text()
    light, dark = (re.search(p, css, re.S)[1] for p in (r":root \{(.*?)\}", r"dark\) \{\s*:root \{(.*?)\}"))
    for scheme, text in (("light", light), ("dark", dark)):
        own = dict(re.findall(r"--([\w-]+): (#\w{6})", text))
        for background in (own["page"], own["shade"], own["warn"], palette.SURFACE[scheme]):
            for front in (getattr(palette.INK, scheme), getattr(palette.QUIET, scheme), own["link"]):
                assert palette.contrast_ratio(front, background) >= 4.5, (scheme, front, background)


# The command and its words ---------------------------------------------------------------------------


def test_the_commands_make_the_page_from_a_manifest(tmp_path):
    lines = [made_trials.make_trial(tmp_path / "trials", Cell("sequential", 1, **ONE), 1)]
    manifest = made_trials.write_manifest(tmp_path, lines)
    for name, *words in (
        ("tables", "--out", tmp_path / "tables"),
        ("figures", "--tables", tmp_path / "tables", "--out", tmp_path / "figures"),
        (
            "report",
            "--tables",
            tmp_path / "tables",
            "--figures",
            tmp_path / "figures",
            "--out",
            tmp_path / "r.html",
        ),
    ):
        command = [sys.executable, ROOT / "scripts" / f"{name}.py", "--matrix", manifest, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_without_tables_the_command_says_what_to_run(tmp_path):
    lines = [made_trials.make_trial(tmp_path / "trials", Cell("sequential", 1, **ONE), 1)]
    manifest = made_trials.write_manifest(tmp_path, lines)
    command = [
        sys.executable,
        ROOT / "scripts" / "report.py",
        "--matrix",
        manifest,
        "--tables",
        tmp_path / "no",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run scripts/tables.py first" in done.stderr


def test_a_study_in_which_nothing_worked_has_a_page(tmp_path):
    lines = [made_trials.make_trial(tmp_path / "trials", Cell("parallel", 1, **ONE), 1)]
    text = Page(page_of(lines, tmp_path)[0]).text
    assert "Not measured: no trial worked." in text
    assert "Not found: no number of them worked in every trial" in text
    assert "Parallel worked on 1 slot in 0 of 1 trial." in text
    assert "1 of 1 trial" in text


def test_a_mode_of_another_version_is_shown_by_its_name(tmp_path):
    lines = [made_trials.make_trial(tmp_path / "trials", Cell("sequential", 1, **ONE), 1)]
    manifest = tables.read_manifest(made_trials.write_manifest(tmp_path, lines))
    built = {n: f.assign(mode="telepathic") if "mode" in f else f for n, f in tables.build(manifest).items()}
    figures.write(figures.Study(built, {}), tmp_path / "figures", png_dpi=40)
    assert "telepathic" in Page(report.build(manifest, built, tmp_path / "figures")).text


def test_what_to_use_has_its_numbers_beside_the_headline_setting(tmp_path):
    def page(place, *cells):
        lines = [
            made_trials.make_trial(
                place / "trials", cell, repeat, warm_rounds=1, costs=made_trials.Costs(token_s=token_s)
            )
            for repeat in (1, 2)
            for cell, token_s in cells
        ]
        return page_of(lines, place)[0]

    ours = [(Cell(mode, 1, **ONE), 0.02) for mode in ("parallel", "shared", "sequential")]
    served = (Cell("served", 1, 8, "transformers-serve", "process"), 0.01)
    html = page(tmp_path / "with", *ours, served)
    beside = html[html.index("What to use for these agents stands outside") : html.index('id="compared"')]
    assert "Served" in beside and "transformers-serve" in beside and "Shared" not in beside
    assert "stands outside" not in page(tmp_path / "without", *ours)


EAGER = dict(
    engine="eager",
    start="process",
    compile_cache="none",
    variant="base",
    workload="explain",
    status="ok",
    zygote_s=None,
)


def fastest(cold: dict[tuple[str, int], dict[int, float]]) -> verdict.Answer:
    import pandas as pd

    rows = [
        {**EAGER, "mode": mode, "gpus": gpus, "repeat": repeat, "cold_s": value}
        for (mode, gpus), values in cold.items()
        for repeat, value in values.items()
    ]
    return verdict.fastest(pd.DataFrame(rows), "cold", "gpu")


def test_modes_that_overlap_are_not_told_apart():
    answer = fastest({("parallel", 2): {1: 1.0, 2: 2.0, 3: 1.5}, ("shared", 1): {1: 2.0, 2: 1.0, 3: 1.6}})
    assert answer.support[1].endswith(": these trials cannot tell them apart.")
    assert ", so far: " in answer.answer


def test_what_fails_at_times_is_not_fastest_and_is_named():
    import pandas as pd

    rows = [
        {**EAGER, "mode": mode, "gpus": 1, "repeat": repeat, "cold_s": seconds if ok else None}
        | {"status": "ok" if ok else "oom"}
        for mode, seconds, worked in (("parallel", 5.0, (True, False, False)), ("shared", 8.0, (True,) * 3))
        for repeat, ok in enumerate(worked, 1)
    ]
    answer = verdict.fastest(pd.DataFrame(rows), "cold", "gpu")
    assert answer.answer == "Shared on 1 GPU: 8.00 s"
    assert "Parallel on 1 GPU: 5.00 s where it worked, but it failed in 2 of 3 trials." in answer.support
    alone = verdict.fastest(pd.DataFrame(rows[:3]), "cold", "gpu")
    assert alone.answer == "Parallel on 1 GPU: 5.00 s"
    assert "It failed in 2 of 3 trials; none worked in all of its own." in alone.support


def test_a_number_of_devices_is_enough_only_where_every_trial_worked():
    import pandas as pd

    rows = [
        {**EAGER, "mode": "parallel", "gpus": gpus, "status": status, "simulated_budget": False}
        for gpus, status in ((2, "ok"), (2, "oom"), (2, "oom"), (4, "ok"), (4, "ok"))
    ] + [{**EAGER, "mode": "served", "gpus": 4, "simulated_budget": False}]
    answer = verdict.devices_needed(pd.DataFrame(rows), pd.DataFrame(), "gpu")
    assert answer.answer == "4 GPUs"
    assert answer.support == (
        "Parallel worked on 2 GPUs in 1 of 3 trials.",
        "Parallel worked on 4 GPUs in 2 of 2 trials.",
    )


def test_the_fastest_is_the_one_that_wins_where_both_ran():
    # Alone, repeat 3 of `shared` met a slow machine: over what both ran it is the faster one.
    answer = fastest({("parallel", 2): {1: 2.0, 2: 2.2}, ("shared", 1): {1: 1.0, 2: 1.1, 3: 30.0}})
    assert answer.answer.startswith("Shared")


def test_what_started_differently_is_no_rival_when_warm():
    import pandas as pd

    rows = [
        {**EAGER, "mode": mode, "start": start, "gpus": 1, "repeat": 1, "warm_s": seconds, "cold_s": seconds}
        for mode, start, seconds in (
            ("served", "disk", 1.0),
            ("served", "process", 1.1),
            ("shared", "process", 5.0),
        )
    ]
    said = {phase: verdict.fastest(pd.DataFrame(rows), phase, "gpu").support[1] for phase in ("warm", "cold")}
    assert said["warm"].startswith("5.00 ×") and "Shared" in said["warm"]
    assert "as fast as Served on 1 GPU, process start" in said["cold"]


def test_a_forked_start_names_what_it_does_not_count():
    import pandas as pd

    rows = [
        {
            **EAGER,
            "mode": "shared",
            "gpus": 1,
            "repeat": n,
            "cold_s": 5.0,
            "warm_s": 5.0,
            "zygote_s": 10.0 + n,
        }
        for n in (1, 2, 3)
    ]
    cold, warm = (verdict.fastest(pd.DataFrame(rows), phase, "gpu").support for phase in ("cold", "warm"))
    said = "Not in it: 12.0 s, once, for the process that its workers are forked from."
    assert said in cold and said not in warm


@pytest.mark.parametrize("seed", range(5))
def test_wins_are_counted_as_pair_by_pair(seed):
    import random

    draw = random.Random(seed)
    of = [{r: draw.uniform(1, 2) for r in range(6) if draw.random() < 0.6} for _ in range(12)]

    def wins(ours, theirs):
        return (stats.paired(metrics.speedup, theirs, ours).value or 0) > 1

    assert verdict._wins(of) == [sum(wins(ours, theirs) for theirs in of) for ours in of]


def test_one_trial_claims_no_interval():
    answer = fastest({("parallel", 2): {1: 2.0}, ("sequential", 1): {1: 4.0}})
    assert answer.support[0] == "2.00 s (one trial has no interval), n = 1."
    assert answer.support[1] == "2.00 × (one trial has no interval) as fast as Sequential on 1 GPU."


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (99.96, "100"), (12.34, "12.3"), (0.01234, "0.0123"), (0, "0"), (None, "–"),
     (float("nan"), "–"), (0.00001, "1.00e-05"), (-3.2, "-3.20")],
)  # fmt: skip
def test_numbers_are_said_with_three_digits(value, text):
    assert number(value) == text


def test_estimates_say_what_they_do_not_know():
    assert interval(Estimate(2.0, 0.01, 400.0, 2)) == "very wide"
    assert estimate(Estimate(None, None, None, 0, "no trial"), "s") == "not estimable (no trial)"
    assert estimate(Estimate(2.0, 1.5, 2.5, 3), "s") == "2.00 s [1.50, 2.50]"
    assert estimate(Estimate(2.0, 0.01, 400.0, 2), "s") == "2.00 s (very wide interval)"
