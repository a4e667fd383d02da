"""What the validity script's claims are judged by, on numbers made up so that the answer is known."""

import math
import random
import time
from dataclasses import replace

import pytest

import claims
import validity
from claims import Answer, Measured, Outcome, Sample
from crewbench.devices.inventory import slots
from crewbench.records import STAGES


def noisy(factor, spread, count, seed=0):
    """Pairs that drift together by half, whose ratio is `factor` on average."""
    draw = random.Random(seed)
    return [
        (drift * factor * draw.lognormvariate(0, spread), drift * draw.lognormvariate(0, spread))
        for drift in (1 + i / count / 2 for i in range(count))
    ]


def judge(pairs, limit=1.0):
    return claims.ratio("c", "this against that", limit, pairs)


# ---- pairs and their limits


def test_a_claim_is_met_when_the_whole_interval_lies_inside_its_limit():
    found = judge(noisy(1.002, 0.002, 30))
    assert found.outcome == Outcome.MET
    assert -1.0 <= found.low_pct < found.difference_pct < found.high_pct <= 1.0


def test_a_difference_beyond_the_limit_is_not_met_in_either_direction():
    for factor in (0.98, 1.02):
        found = judge(noisy(factor, 0.002, 30))
        assert found.outcome == Outcome.NOT_MET
        assert found.difference_pct == pytest.approx(100 * (factor - 1), abs=0.3)


def test_a_small_difference_in_too_much_noise_is_not_met():
    found = judge(noisy(1.0, 0.05, 10))
    assert found.outcome == Outcome.NOT_MET
    assert found.high_pct - found.low_pct > 2.0


def test_the_interval_is_that_of_the_logs_by_hand():
    # log ratios ±ln 1.01, four of each: mean 0, deviation ln 1.01 · √(8/7); t(0.975, 7) = 2.364624
    found = judge([(1.01, 1.0), (1.0, 1.01)] * 4)
    half = 2.364624 * math.log(1.01) * math.sqrt(8 / 7) / math.sqrt(8)
    assert found.difference_pct == pytest.approx(0.0, abs=1e-9)
    assert (found.low_pct, found.high_pct) == pytest.approx((100 * math.expm1(-half), 100 * math.expm1(half)))
    assert found.n == 8


def test_fewer_than_ten_pairs_meet_nothing():
    assert judge([(1.0, 1.0)] * 10).outcome == Outcome.MET
    for few in (1, 9):
        found = judge([(1.0, 1.0)] * few)
        assert found.outcome == Outcome.NOT_MET
        assert f"{few} are too few" in found.note


def test_without_pairs_nothing_is_measured_and_without_a_limit_nothing_is_judged():
    assert judge([]).outcome == Outcome.NOT_MEASURED
    assert judge([(1.0, 2.0)] * 10, limit=None).outcome == Outcome.SHOWN


def test_a_value_of_nothing_has_no_ratio():
    for pair in ((0.0, 1.0), (1.0, 0.0)):
        found = judge([pair] * 10)
        assert found.outcome == Outcome.NOT_MET
        assert "not positive" in found.note


def test_a_claim_whose_truth_is_at_the_limit_is_met_about_once_in_forty():
    studies = 400
    met = sum(judge(noisy(1.01, 0.004, 12, seed)).outcome == Outcome.MET for seed in range(studies))
    assert met <= 0.06 * studies


# ---- interleaving


def test_two_sides_come_in_the_order_abba():
    assert [side for order in claims.orders("AB", 4) for side in order] == list("ABBAABBA")


def test_each_side_is_as_often_at_each_place_and_right_after_each_other_one():
    turns = claims.orders("ABC", 10)
    assert len(turns) == 12
    for place in range(3):
        assert sorted(order[place] for order in turns) == sorted("ABC" * 4)
    after = [pair for order in turns for pair in zip(order, order[1:], strict=False)]
    assert {after.count(pair) for pair in set(after)} == {4}


def test_drift_that_interleaving_cancels_does_not_pass_for_a_difference():
    clock, rows = 1.0, []
    for block, order in enumerate(claims.orders("AB", 20)):
        for place, side in enumerate(order):
            rows.append(Measured("p", block, place, side, clock))
            clock *= 1.004
    found = judge([(a.seconds, b.seconds) for a, b in claims.pairs(rows, "A", "B")])
    assert found.difference_pct == pytest.approx(0.0, abs=1e-6)
    assert found.outcome == Outcome.MET


def test_pairs_are_of_one_block_and_a_block_that_lacks_a_side_is_none():
    rows = [Measured("p", b, 0, side, 10.0 * b + len(side)) for b in (1, 0) for side in ("a", "bb")]
    rows.append(Measured("p", 2, 0, "a", 99.0))
    found = claims.pairs(rows, "bb", "a")
    assert [(x.seconds, y.seconds) for x, y in found] == [(2.0, 1.0), (12.0, 11.0)]


# ---- ids


def test_ids_differ_at_the_first_place_that_is_not_the_same_or_where_one_ends():
    assert claims.first_difference([1, 2, 3], (1, 2, 3)) is None
    assert claims.first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert claims.first_difference([1, 2], [1, 2, 3]) == 2


def test_equal_ids_are_counted_and_the_first_that_differ_are_named():
    assert claims.equal_ids("c", "ids", [([1, 2], [1, 2])] * 3).outcome == Outcome.MET
    found = claims.equal_ids("c", "ids", [([1, 2], [1, 2]), ([1, 2], [1, 3]), ([4], [5])])
    assert found.outcome == Outcome.NOT_MET
    assert found.note == "1 of 3 equal; pair 1 differs from id 1 on"


ANSWER = Answer("model", "parallel__r1", "parallel", 1, 0, "architect", (7, 8), (1, 2, 3))


def same_in_modes(*answers):
    return claims.same_in_modes("c", "ids", claims.prompts(answers))


def test_the_same_prompt_must_give_the_same_ids_in_every_mode():
    shared = replace(ANSWER, mode="shared", trial_id="shared__r1")
    found = same_in_modes(ANSWER, replace(ANSWER, round=1), shared)
    assert (found.outcome, found.n) == (Outcome.MET, 2)
    assert found.note == "2 of 2 equal; compared across parallel, shared"
    found = same_in_modes(ANSWER, replace(shared, output_ids=(1, 9, 3)), replace(shared, round=1))
    assert (found.outcome, found.n) == (Outcome.NOT_MET, 2)
    assert "1 of 2 equal" in found.note
    assert "round 0 of shared__r1, from id 1 on" in found.note


def test_answers_to_other_prompts_agents_or_work_are_not_compared():
    others = [{"prompt_ids": (7, 9)}, {"agent": "engineer"}, {"work": "other model"}]
    answers = [replace(ANSWER, mode="shared", output_ids=(5,), **other) for other in others]
    assert claims.prompts([ANSWER, *answers]) == []
    assert same_in_modes(ANSWER, *answers).outcome == Outcome.NOT_MEASURED


def test_one_mode_alone_says_nothing_about_every_mode():
    found = same_in_modes(ANSWER, replace(ANSWER, round=1))
    assert found.outcome == Outcome.NOT_MEASURED


# ---- stages


def a_round(idle, status="ok", more=0.0):
    row = {f"{stage}_s": "0" for stage in STAGES}
    row |= {"decode_s": str(10 - idle + more), "idle_s": str(idle), "makespan_s": "10"}
    return {**row, "status": status, "trial_id": f"t{idle}", "round": "1"}


def stages(*rounds):
    return claims.stages("c", "idle", 2.0, rounds)


def test_every_round_that_worked_must_be_explained():
    assert stages(a_round(0.1), a_round(0.2)).outcome == Outcome.MET
    found = stages(a_round(0.1), a_round(0.3), a_round(5.0, status="oom"))
    assert (found.outcome, found.n) == (Outcome.NOT_MET, 2)
    assert found.difference_pct == pytest.approx(3.0)
    assert found.note == "1 of 2 rounds; worst: round 1 of t0.3"


def test_stages_that_explain_more_than_there_was_do_not_add_up_either():
    assert stages(a_round(0.0, more=0.5)).outcome == Outcome.NOT_MET


def test_without_a_round_that_worked_nothing_is_said_of_stages():
    assert stages(a_round(0.1, status="error")).outcome == Outcome.NOT_MEASURED


# ---- energy


def at_20_hz(seconds, power, counter_step_s=0.1):
    """Samples of a card whose power is power(t); its counter is renewed every `counter_step_s` only."""
    fine = 0.001
    steps, energy, samples = round(seconds / fine), 0.0, []
    shown = 0.0
    for i in range(steps + 1):
        t = i * fine
        if i % round(counter_step_s / fine) == 0:
            shown = energy
        if i % 50 == 0:
            samples.append(Sample(t, power(t), shown, 25.0))
        energy += power(t) * fine
    return samples


def wave(t):
    return 250 + 60 * math.sin(2 * math.pi * t / 1.7)


def test_integrated_power_agrees_with_a_counter_that_is_renewed_ten_times_a_second():
    found = claims.windows(at_20_hz(60, wave), 0.0, 60.0, 5.0)
    assert len(found) == 12
    verdict = claims.ratio("energy", "e", 5.0, [(w.integrated_j, w.counter_j) for w in found])
    assert verdict.outcome == Outcome.MET
    assert abs(verdict.difference_pct) < 0.5


def test_a_power_reading_that_is_a_tenth_too_high_is_found():
    samples = [replace(s, power_w=1.1 * s.power_w) for s in at_20_hz(60, wave)]
    found = claims.windows(samples, 0.0, 60.0, 5.0)
    verdict = claims.ratio("energy", "e", 5.0, [(w.integrated_j, w.counter_j) for w in found])
    assert verdict.outcome == Outcome.NOT_MET
    assert verdict.difference_pct == pytest.approx(10, abs=0.5)


def test_windows_are_trapezoids_by_hand_and_share_their_edges():
    samples = [Sample(t, 100.0 + 10 * t, 1000.0 * t, 10.0 * t) for t in (0.0, 1.0, 3.0, 4.0, 4.5)]
    first, second = claims.windows(samples, 0.0, 4.5, 2.0)[:1] + claims.windows(samples, 3.0, 4.5, 1.5)
    # 0 to 3 s: (100 + 110) / 2 · 1 + (110 + 130) / 2 · 2 = 105 + 240
    assert (first.start_s, first.end_s, first.samples, first.gap_s) == (0.0, 3.0, 3, 2.0)
    assert (first.integrated_j, first.counter_j) == pytest.approx((345.0, 3000.0))
    assert first.mean_util_pct == pytest.approx(40 / 3)
    assert (second.start_s, second.end_s) == (3.0, 4.5)
    found = claims.windows(at_20_hz(10, wave), 0.0, 10.0, 2.0)
    assert [w.end_s for w in found[:-1]] == [w.start_s for w in found[1:]]


def test_only_samples_between_the_two_instants_count():
    found = claims.windows(at_20_hz(10, wave), 2.5, 8.0, 2.0)
    assert found[0].start_s == pytest.approx(2.5)
    assert found[-1].end_s <= 8.0
    assert len(found) == 2


def test_a_window_in_which_a_reading_is_missing_is_left_out_and_the_next_one_is_not():
    samples = at_20_hz(6, wave)
    samples[50] = replace(samples[50], power_w=None)
    assert [w.start_s for w in claims.windows(samples, 0.0, 6.0, 2.0)] == pytest.approx([0.0, 4.0])


def test_a_card_without_power_has_no_verdict_on_energy():
    samples = [replace(s, power_w=None) for s in at_20_hz(6, wave)]
    found = validity.judge_energy(claims.windows(samples, 0.0, 6.0, 2.0))
    assert found.outcome == Outcome.NOT_MEASURED


# ---- the sampler on and off


def sampled(on, off):
    rows = []
    for block, order in enumerate(claims.orders(["on", "off"], 10)):
        for place, side in enumerate(order):
            rows.append(Measured("sampler", block, place, side, 1.0, samples=on if side == "on" else off))
    return validity.judge_sampler(rows, [1.0] * len(rows))


def test_a_sampler_that_was_not_off_or_not_on_is_not_compared():
    assert sampled(on=20, off=0).outcome == Outcome.MET
    assert sampled(on=20, off=1).outcome == Outcome.NOT_MET
    assert sampled(on=3, off=0).outcome == Outcome.NOT_MET


def test_a_sampler_that_is_switched_off_takes_no_sample_until_it_is_on_again(tmp_path):
    path = tmp_path / "gone.csv"
    with validity.sampling(slots(1, 100)[0], tmp_path, "gone") as (sampler, zero, found):
        validity.switch(sampler.pid, False)
        stopped = time.monotonic() - zero
        before = path.read_bytes()
        time.sleep(0.2)  # four samples' time
        assert path.read_bytes() == before
        on_again = time.monotonic() - zero
        validity.switch(sampler.pid, True)
        while path.read_bytes() == before:
            time.sleep(0.01)  # the file is the thing waited for: it has no event
    at = [s.at_s for s in found["samples_read"]]
    assert not [t for t in at if stopped < t < on_again]
    assert at[-1] > on_again
    assert found["samples"] == len(at)


def test_a_sampler_that_died_is_an_error_and_not_a_hang(tmp_path):
    with validity.sampling(slots(1, 100)[0], tmp_path, "dead") as (sampler, _, _):
        validity.os.kill(sampler.pid, validity.signal.SIGKILL)
        with pytest.raises((RuntimeError, ChildProcessError)):
            validity.switch(sampler.pid, False)


# ---- the table


def test_the_table_has_a_line_for_each_claim_with_its_interval_and_verdict():
    met, not_met = judge([(1.001, 1.0)] * 10), judge([(1.5, 1.0)] * 10)
    text = claims.table([met, not_met])
    head, *lines = text.splitlines()
    assert "95 % interval" in head
    assert lines[0].startswith("this against that")
    assert "+0.10 %  [+0.10 %, +0.10 %]" in lines[0] and lines[0].endswith("met")
    assert lines[1].endswith("NOT MET")
