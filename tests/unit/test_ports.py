"""Ports for servers that bind them later: none that an outgoing connection may get meanwhile."""

import socket

import pytest

from crewbench.execute import ports


@pytest.fixture
def outgoing_from(tmp_path, monkeypatch):
    """Lets outgoing connections have all ports from one on."""

    def set_to(port):
        (tmp_path / "range").write_text(f"{port}\t65535\n")
        monkeypatch.setattr(ports, "OUTGOING", tmp_path / "range")
        monkeypatch.setattr(ports, "_given", set())

    return set_to


@pytest.fixture
def listening():
    with socket.socket() as held:
        held.bind((ports.LOCAL, 0))
        held.listen()
        yield held.getsockname()[1]


def test_a_port_is_free_never_given_twice_and_none_of_an_outgoing_connection():
    given = [ports.free_port() for _ in range(50)]
    lowest_outgoing = int(ports.OUTGOING.read_text().split()[0])
    assert len(set(given)) == 50
    assert all(ports.LOWEST <= port < lowest_outgoing for port in given)
    assert not any(map(ports.taken, given))


def test_a_port_that_somebody_has_is_not_given_and_the_system_says_why(outgoing_from, monkeypatch, listening):
    monkeypatch.setattr(ports, "LOWEST", listening)
    outgoing_from(listening + 1)
    assert ports.taken(listening) == "Address already in use"
    assert ports.free_port() != listening


def test_where_outgoing_connections_have_all_ports_the_system_chooses(outgoing_from):
    outgoing_from(1024)
    assert not ports.taken(ports.free_port())
