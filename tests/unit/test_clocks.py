"""What a far worker says crosses as ages: its durations stay, its clock does not count."""

from crewbench.execute.clocks import shifted
from crewbench.execute.worker import Failure, Stages, StepResult
from crewbench.records import Status

FAR, NEAR = 1_000_000.0, 50.0
"""The time on either host when the message is sent and heard: one has been up for days."""


def crossed(message):
    return shifted(shifted(message, -FAR), NEAR)


def test_a_step_keeps_its_durations_and_ends_when_it_is_heard_of():
    result = StepResult(
        "agent0",
        Status.OK,
        started_s=FAR - 8,
        ended_s=FAR,
        prefill_s=2,
        decode_s=5,
        first_token_s=FAR - 6,
        token_s=[[FAR - 6, FAR - 3], [FAR - 1]],
    )
    _, heard = crossed(("done", result))
    assert (heard.started_s, heard.first_token_s, heard.ended_s) == (42, 44, 50)
    assert heard.token_s == [[44, 47], [49]]
    assert (heard.prefill_s, heard.decode_s) == (2, 5)


def test_a_step_without_a_token_has_none_afterwards():
    _, heard = crossed(("done", StepResult("agent0", Status.TIMEOUT, FAR - 1, FAR)))
    assert heard.first_token_s is None and heard.token_s == []


def test_stages_keep_their_seconds_whether_they_came_to_an_end_or_not():
    _, ready = crossed(("ready", Stages(began_s=FAR - 20, import_s=9, load_s=4, ended_s=FAR)))
    assert (ready.began_s, ready.ended_s, ready.import_s, ready.load_s) == (30, 50, 9, 4)
    why = Failure(Status.ERROR, "no")
    assert crossed(("failed", Stages(began_s=FAR - 1), why)) == ("failed", Stages(began_s=49), why)


def test_what_holds_no_instant_is_as_it_was():
    for message in (("pid", 7), ("stopped", {"slot-0": {"allocated_peak_mib": 5.0}}, [])):
        assert crossed(message) == message
    assert crossed(("stage", "load", FAR)) == ("stage", "load", 50)
