"""What a copy charges to the slots it lies on."""

import os

import pytest

from crewbench.devices.budget import Ledger, OutOfMemory
from crewbench.engines.account import SimulatedAccount

ME = os.getpid()


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.json")


def account(ledger, *slots, budget_mib=20.0):
    return SimulatedAccount(ledger, slots, budget_mib, weights_mib=30.0, kv_mib_per_token=0.5)


def test_a_spread_copy_charges_each_slot_an_equal_share_and_gives_the_sequences_back(ledger):
    spread = account(ledger, "slot-0", "slot-1")
    spread.weights()
    assert ledger.usage() == {"slot-0": {ME: 15.0}, "slot-1": {ME: 15.0}}
    with spread.sequence() as hold:
        hold(10)
        assert ledger.usage() == {"slot-0": {ME: 17.5}, "slot-1": {ME: 17.5}}
    assert ledger.usage() == {"slot-0": {ME: 15.0}, "slot-1": {ME: 15.0}}


def test_a_slot_that_refuses_its_share_leaves_none_on_the_others(ledger):
    spread = account(ledger, "slot-0", "slot-1")
    spread.weights()
    ledger.charge("slot-1", ME, "somebody", 4.0, budget_mib=20.0)
    with pytest.raises(OutOfMemory) as refused, spread.sequence() as hold:
        hold(10)
    assert refused.value.device_uuid == "slot-1"
    assert ledger.usage()["slot-0"] == {ME: 15.0}
