"""Whether an engine computes what the checkpoint says: the numbers, the judgement, and where it shows."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest

import made_trials
from crewbench import cells, figures, quality, report, tables
from crewbench.engines import Observed
from crewbench.quality import FLOOR, Agreement, Numbers, compare, conversations, judge
from crewbench.trial import AgentSpec, Cell, TaskSpec

EXACT = np.array([[4.0, 2.0, 0.0, -6.0], [0.0, 2.0, -2.0, 0.0]], dtype=np.float32)
STD = 2.8284271247461903  # of those eight numbers: mean 0, squares 16 + 4 + 36 + 4 + 4 = 64, over 8


def against_exact(logits, ids=(0, 1), plain=EXACT):
    return compare([Observed(list(ids), np.asarray(logits, dtype=np.float32))], [plain], [EXACT])


# The numbers --------------------------------------------------------------------------------------


def test_errors_are_in_standard_deviations_of_the_float32_logits_and_of_the_worst_token():
    off = EXACT + np.array([[0, 0, 0, 0], [0.4, 0, -0.4, 0]], dtype=np.float32)
    numbers = against_exact(off)
    assert numbers.logit_std == pytest.approx(STD)
    assert numbers.logit_error == pytest.approx(np.sqrt((0.16 + 0.16) / 4) / STD)
    assert numbers.logit_max == pytest.approx(0.4 / STD)
    assert numbers.logit_mean == pytest.approx(0.8 / 8 / STD)


def test_the_gap_is_what_the_chosen_id_lacks_of_float32s_best_and_of_its_own():
    numbers = against_exact(EXACT, ids=(1, 1))
    assert numbers.gap == numbers.own_gap == pytest.approx(2.0 / STD)
    assert numbers.top1_share == 0.5
    swapped = EXACT[:, [1, 0, 2, 3]]
    numbers = against_exact(swapped, ids=(1, 0))
    assert (numbers.own_gap, numbers.top1_share) == (0.0, 0.0)


def test_a_log_probability_is_that_of_the_chosen_id_whatever_is_added_to_all_logits():
    assert against_exact(EXACT + 5.0).logprob_error == pytest.approx(0.0, abs=1e-6)
    said = [float(v) for v in np.log(np.exp(EXACT) / np.exp(EXACT).sum(1, keepdims=True))[[0, 1], [0, 1]]]
    seen = [Observed([0, 1], logprobs=[said[0] + 0.3, said[1]])]
    numbers = compare(seen, [EXACT], [EXACT])
    assert numbers.logprob_error == pytest.approx(np.sqrt(0.09 / 2) / STD, rel=1e-5)
    assert numbers.logit_error is numbers.own_gap is None


def test_the_plain_forward_is_measured_by_the_same_rule():
    plain = EXACT + np.float32(0.1) * np.array([1, -1, 1, -1], dtype=np.float32)
    numbers = against_exact(plain, plain=plain)
    assert numbers.plain_logit_error == numbers.logit_error == pytest.approx(0.1 / STD, rel=1e-5)
    assert (numbers.plain_logit_max, numbers.plain_logprob_error) == (
        numbers.logit_max,
        numbers.logprob_error,
    )


def test_an_id_that_a_model_rules_out_is_no_error_and_a_logit_that_is_no_number_is():
    ruled_out = EXACT.copy()
    ruled_out[:, 3] = -np.inf
    numbers = compare([Observed([0, 1], ruled_out)], [ruled_out], [ruled_out])
    assert (numbers.logit_error, numbers.broken_tokens) == (0.0, 0)
    broken = EXACT.copy()
    broken[1, 2] = np.nan
    numbers = against_exact(broken)
    assert (numbers.broken_tokens, numbers.logit_error) == (1, 0.0)


def test_logits_of_another_length_than_the_ids_are_refused():
    with pytest.raises(ValueError, match="1 ids against"):
        compare([Observed([0], EXACT[:1])], [EXACT], [EXACT])
    with pytest.raises(ValueError, match="0 ids"):
        compare([Observed([], EXACT[:0])], [EXACT[:0]], [EXACT[:0]])


# The judgement ------------------------------------------------------------------------------------


def record(root, **said):
    return quality.read(root / made_trials.make_check(root, "eager", **said)["engine"])


@pytest.mark.parametrize(
    ("said", "agreement", "reason"),
    [
        ({}, Agreement.AGREES, ""),
        ({"logit_error": 0.079}, Agreement.AGREES, ""),
        ({"logit_error": 0.081}, Agreement.DIFFERS, "2.02 × what bfloat16 alone costs"),
        ({"logit_error": FLOOR, "plain_logit_error": 1e-7}, Agreement.AGREES, ""),
        ({"logit_error": 2 * FLOOR, "plain_logit_error": 0.0}, Agreement.DIFFERS, "its logits are off"),
        ({"own_gap": 0.01}, Agreement.DIFFERS, "below its own best"),
        ({"gap": 0.79}, Agreement.AGREES, ""),
        ({"gap": 0.81}, Agreement.DIFFERS, "below float32's best"),
        ({"logit_error": None, "own_gap": None}, Agreement.AGREES, ""),
        ({"logit_error": None, "logprob_error": 0.061}, Agreement.DIFFERS, "its log probabilities are off"),
        ({"logit_error": None, "own_gap": None, "gap": 0.81}, Agreement.DIFFERS, "below float32's best"),
        ({"logit_error": None, "logprob_error": None}, Agreement.NOT_OBSERVABLE, "neither"),
        ({"broken_tokens": 1}, Agreement.DIFFERS, "1 of 96 tokens"),
        ({"logit_error": None, "broken_tokens": 96}, Agreement.DIFFERS, "96 of 96"),
        ({"plain_logit_error": None}, Agreement.NOT_MEASURED, "a plain forward in bfloat16"),
        ({"unseen": "it is closed"}, Agreement.NOT_OBSERVABLE, "it is closed"),
        ({"error": "out of memory"}, Agreement.NOT_MEASURED, "out of memory"),
        ({"top1_share": 0.0}, Agreement.AGREES, ""),
    ],
)
def test_an_engine_is_judged_by_what_can_be_seen_and_by_what_its_type_alone_costs(
    tmp_path, said, agreement, reason
):
    found = judge(record(tmp_path, **said))
    assert found.agreement == agreement
    assert reason in found.reason and bool(found.reason) == bool(reason)


def test_the_threshold_is_the_configs(tmp_path):
    made = record(tmp_path, logit_error=0.1)
    assert [judge(made, times).agreement for times in (2.0, 3.0)] == [Agreement.DIFFERS, Agreement.AGREES]


def test_of_several_engines_the_one_that_differs_is_said():
    assert Agreement.worst(["agrees", "differs", "not observable"]) == Agreement.DIFFERS
    assert Agreement.worst(["agrees", "not measured"]) == Agreement.NOT_MEASURED
    assert Agreement.worst([]) == Agreement.NOT_MEASURED


# What is asked ------------------------------------------------------------------------------------


def test_the_prompts_are_of_agents_drawn_by_the_seed_in_their_own_words_with_the_inputs():
    agents = [AgentSpec(f"a{i}", f"Role {i}", "Win {topic}", "Old hand") for i in range(8)]
    task = TaskSpec("explain", "Explain {topic}", "Text")
    asked = [conversations(agents, task, {"topic": "chess"}, seed) for seed in (1, 1, 2)]
    assert asked[0] == asked[1] != asked[2]
    assert len(asked[0]) == quality.PROMPTS
    system, user = asked[0][0]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "Old hand" in system["content"] and "Win chess" in system["content"]
    assert user["content"] == "Explain chess\n\nText"


# Where it shows -----------------------------------------------------------------------------------

ENGINES = ("eager", "compiled", "vllm", "transformers-serve")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four engines: one agrees, one differs, one is not observable, one was not checked."""
    root = tmp_path_factory.mktemp("quality")
    lines = [
        made_trials.make_trial(root / "trials", Cell("parallel", g, 2, e, "process"), r, warm_rounds=1)
        for r in (1, 2)
        for e in ENGINES
        for g in (1, 2)
    ]
    checks = [
        made_trials.make_check(root / "checks", "eager"),
        made_trials.make_check(root / "checks", "compiled", logit_error=0.5),
        made_trials.make_check(root / "checks", "transformers-serve", unseen="it is closed"),
    ]
    never = {**checks[0], "check_id": "vllm__d1", "engine": "vllm", "dir": str(root / "checks/never")}
    return root, tables.read_manifest(made_trials.write_manifest(root, lines, checks=[*checks, never]))


@pytest.fixture(scope="module")
def built(study):
    return tables.build(study[1])


EXPECTED = {
    "eager": "agrees",
    "compiled": "differs",
    "transformers-serve": "not observable",
    "vllm": "not measured",
}


def test_every_trial_and_every_row_of_the_summary_says_whether_its_engine_agrees(built):
    for name in ("trials", "summary", "quality"):
        frame = built[name]
        assert dict(zip(frame["engine"], frame["agreement"], strict=True)) == EXPECTED


def test_the_table_of_checks_has_the_numbers_and_nothing_for_what_was_not_seen(built):
    rows = built["quality"].set_index("engine")
    assert rows.loc["compiled", "times_plain"] == pytest.approx(12.5)
    assert rows.loc["eager", "logit_error"] == 0.04
    assert rows.loc["vllm", [*asdict(Numbers(*[0] * 12))]].isna().all()
    assert rows.loc["vllm", "reason"] == "the check was not made"


def test_tables_are_written_and_loaded_with_the_checks(built, tmp_path):
    tables.write(built, tmp_path)
    assert list(tables.load(tmp_path)["quality"]["check_id"]) == list(built["quality"]["check_id"])


def test_another_threshold_in_the_config_gives_another_judgement(study, tmp_path):
    root, manifest = study
    lenient = {"thresholds": {"logit_error": 20.0}}
    path = made_trials.write_manifest(tmp_path, manifest.trials, checks=manifest.checks, config=lenient)
    frame = tables.build(tables.read_manifest(path))["quality"].set_index("engine")
    assert frame.loc["compiled", "agreement"] == "agrees"


def test_results_without_any_check_say_not_measured(study, tmp_path):
    path = made_trials.write_manifest(tmp_path, study[1].trials)
    data = json.loads(path.read_text())
    del data["checks"]
    for line in data["trials"]:
        del line["check_id"]
    path.write_text(json.dumps(data))
    old = tables.build(tables.read_manifest(path))
    assert set(old["trials"]["agreement"]) == {"not measured"} and old["quality"].empty
    figures.write(figures.Study(old, {}), tmp_path / "figures", png_dpi=40)
    page = report.build(tables.read_manifest(path), old, tmp_path / "figures")
    assert "engine (agreement with float32 not measured)" in page


@pytest.mark.parametrize("text", ["{", '{"check_id": "eager__d1"}', "[]"])
def test_a_half_written_record_is_an_error_that_names_file_and_remedy(study, tmp_path, text):
    line = made_trials.make_check(tmp_path, "eager")
    (tmp_path / "eager" / quality.RECORD).write_text(text)
    with pytest.raises(ValueError, match=r"eager/quality.json: .*; delete .*/eager and run again"):
        quality.rows([line])


def test_a_record_of_another_check_is_not_taken(tmp_path):
    line = made_trials.make_check(tmp_path, "eager")
    with pytest.raises(ValueError, match="its spec8 is '00000000'"):
        quality.rows([{**line, "spec8": "12345678"}])


@pytest.fixture(scope="module")
def drawn(study, built):
    figures.write(figures.Study(built, {}), study[0] / "figures", png_dpi=40)
    return study[0] / "figures"


@pytest.fixture(scope="module")
def page(study, built, drawn):
    return report.build(study[1], built, drawn)


def test_beside_every_speed_in_the_report_stands_whether_its_engine_agrees(built, page):
    numbers = page[page.index("The numbers</h2>") : page.index("Figures</h2>")]
    said = sum(numbers.count(f"<td>{a}</td>\n<td") for a in ("agrees", "not observable", "not measured"))
    said += numbers.count('<td class="bad">differs</td>\n<td')
    assert said == numbers.count('<tr><th scope="row" class="of-mode"') == 9  # 8 cells, what to use twice


@pytest.mark.parametrize(
    ("of_two_gpus", "rest", "said", "above"),
    [
        ("agrees", "agrees", [], "agrees with float32"),
        ("not measured", "agrees", ["agrees", "not measured"], "agreement with float32 not measured"),
    ],
)
def test_an_agreement_that_not_all_rows_share_stands_in_each(
    study, built, drawn, of_two_gpus, rest, said, above
):
    summary = built["summary"]
    summary = summary.assign(agreement=np.where(summary["gpus"] == 2, of_two_gpus, rest))
    page = report.build(study[1], {**built, "summary": summary}, drawn)
    headline = page[page.index("The numbers</h2>") : page.index("What to use for these agents")]
    assert f"compiled engine ({above})" in headline.split("<table")[0]
    assert re.findall(r"<td>(agrees|not measured)</td>", headline) == said
    assert ("Engine against float32" in headline) == bool(said)


def test_an_engine_that_differs_is_warned_of_at_the_top(page):
    warning = "Engine compiled computes something else than the checkpoint: do not take its speed."
    assert page.index(warning) < page.index("In short")
    assert page.count("do not take its speed") == 1


def test_the_report_names_each_checks_numbers_and_says_what_cannot_be_seen(page):
    section = page[page.index("Does each engine compute") : page.index("Tainted trials</h3>")]
    assert "12.5 × what bfloat16 alone costs" in section
    assert section.count("<td>not observable</td>") > 3
    assert "it is closed" in section


def test_captions_and_labels_of_figures_say_it_too(built):
    study = figures.Study(built, {})
    index = {name: draw(study, figures.Canvas()) for name, draw in figures.FIGURES.items()}
    shown = [drawn for drawn in index.values() if drawn.figure is not None]
    assert shown
    for drawn in shown:
        figures.drawing.close(drawn.figure)
        assert "float32" in drawn.caption
    assert study.engine({"engine": "compiled", "variant": "base"}) == "compiled (differs)"
    assert study.engine({"engine": "vllm", "variant": "base"}) == "vllm"
    row = {"engine": "eager", "host": "box", "compile_cache": "none"}
    assert study.setting_words(of=row) == "eager engine (agrees with float32)"


def test_an_engine_that_was_not_checked_never_reads_as_not_measured_itself(page):
    """Its label is its name; what is not known of it stands once in the caption of each figure."""
    assert not re.search(r"(vllm|transformers-serve|eager|compiled) \(not", page)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    several = [text for text in captions if "In brackets, whether an engine agrees with float32." in text]
    assert several
    for text in several:
        assert text.count("Engine vllm: agreement with float32 not measured.") == 1
        assert text.count("Engine transformers-serve: agreement with float32 not observable.") == 1


@pytest.mark.parametrize(
    ("found", "labelled", "said"),
    [
        ({"vllm": "not measured", "eager": "not measured"}, True, "Agreement with float32 not measured."),
        ({"eager": "agrees"}, True, "In brackets, whether an engine agrees with float32."),
        ({"eager": "agrees"}, False, "Engine eager: agrees with float32."),
        (
            {"compiled": "differs", "eager": "differs"},
            False,
            "Engines compiled, eager: differs from float32.",
        ),
        ({}, True, ""),
    ],
)
def test_what_no_label_says_of_an_engine_the_caption_says(found, labelled, said):
    pairs = [(engine, Agreement(state)) for engine, state in found.items()]
    assert cells.untold(pairs * 2, labelled) == said


def test_an_engine_with_two_answers_has_them_in_some_cells():
    pairs = [("eager", Agreement.AGREES), ("eager", Agreement.NOT_MEASURED)]
    assert cells.untold(pairs, labelled=True).endswith(
        "Engine eager in some cells: agreement with float32 not measured."
    )
