"""What lies compiled before round 0: by the start state, counted, and named in the record."""

import pytest

import made_trials
from crewbench.deployment import Worker
from crewbench.devices.inventory import Device
from crewbench.engines import ENGINES, compile_cache
from crewbench.engines.compile_cache import CompileCache
from crewbench.execute.host import compiled_before
from crewbench.start import STARTS
from crewbench.trial import Cell

GPU = Device("GPU-1", 0, "gpu", "a card", 1024.0)


@pytest.fixture
def before(tmp_path, monkeypatch):
    """What a trial of that start state finds, each with a scratch directory of its own."""
    monkeypatch.chdir(tmp_path)
    count = iter(range(100))

    def find(
        start, engine="compiled", host="box", device=GPU, devices=(0,), concurrency=1, **options
    ) -> CompileCache:
        spec = made_trials.spec(Cell("parallel", 1, 1, engine, start, options=options), 1)
        scratch = tmp_path / f"scratch{next(count)}"
        scratch.mkdir()
        worker = Worker("worker", devices, engine, concurrency=concurrency)
        return compiled_before(spec, STARTS[start], worker, "tiny-1", [device], host, scratch)

    return find


def compile_something(cache: CompileCache) -> None:
    place = cache.directory / "inductor" / "fxgraph"
    place.mkdir(parents=True, exist_ok=True)
    (place / "graph").write_bytes(b"x" * 2**20)


def make(cache: CompileCache) -> CompileCache:
    """As a worker that comes up before the clock leaves it."""
    compile_something(cache)
    return compile_cache.made(cache.directory, cache.kind, "ok", 30.0)


def test_from_disk_every_trial_finds_nothing_compiled(before):
    first = before("disk")
    compile_something(first)
    again = before("disk")
    assert (first.state, again.state) == ("empty", "empty")
    assert again.directory != first.directory


@pytest.mark.parametrize("start", ["process", "zygote"])
def test_other_start_states_find_what_a_worker_made_once(before, start):
    first = before("process")
    assert (first.state, first.lacking) == ("empty", True)
    now = make(first)
    assert (now.state, now.files, now.mib, now.made_s) == ("filled", 1, 1.0, 30.0)
    then = before(start)
    assert (then.state, then.files, then.mib, then.made_s) == ("filled", 1, 1.0, None)
    assert then.directory == first.directory


def test_what_a_worker_left_that_never_came_up_is_not_a_filled_cache(before):
    compile_something(before("process"))
    found = before("process")
    assert (found.state, found.lacking, found.files) == ("partly", True, 1)


def test_a_worker_that_did_not_come_up_is_on_record_with_what_it_left(before):
    cache = before("process")
    compile_something(cache)
    now = compile_cache.made(cache.directory, cache.kind, "timeout", 600.0)
    assert (now.state, now.lacking, now.files) == ("partly", True, 1)
    assert (now.record()["made"], now.record()["made_s"]) == ("timeout", 600.0)


def test_on_several_hosts_no_worker_is_started_for_it(before):
    assert not before("process", hosts=2).lacking


def test_a_worker_of_another_shape_needs_a_start_of_its_own(before):
    make(before("process"))
    assert not before("process").lacking
    assert before("process", devices=(0, 1)).lacking
    assert before("process", concurrency=8).lacking


def test_a_device_on_which_the_engine_leaves_nothing_is_asked_once(before):
    cache = before("process")
    compile_cache.made(cache.directory, cache.kind, "ok", 3.0)
    then = before("process")
    assert (then.state, then.lacking) == ("empty", False)


def test_the_record_says_what_was_found_and_what_was_added(before):
    cache = before("process")
    compile_something(cache)
    record = cache.record()
    assert (record["state"], record["files"], record["files_after"]) == ("empty", 0, 1)
    assert (record["mib"], record["mib_after"]) == (0.0, 1.0)
    assert record["directory"].startswith("compiled-tiny-1-")


def test_locks_are_not_compiled_code(before):
    cache = before("process")
    (cache.directory / "locks").mkdir()
    (cache.directory / "locks" / "graph.lock").touch()
    assert before("process").state == "empty"


def test_what_compiled_code_depends_on_names_its_directory(before):
    other_card = Device("GPU-9", 1, "gpu", "another card", 1024.0)
    places = [
        before("process"),
        before("process", host="other"),
        before("process", device=other_card),
        before("process", cache_tokens=512),
    ]
    assert len({p.directory for p in places}) == 4
    same_kind = Device("GPU-2", 1, "gpu", "a card", 1024.0)
    assert before("process", device=same_kind).directory == places[0].directory


def test_an_engine_that_compiles_nothing_has_no_cache_and_no_directory(before, tmp_path):
    assert not ENGINES["eager"].compile_cache
    cache = before("process", engine="eager")
    assert (cache.state, cache.environment, cache.record()["files_after"]) == ("none", {}, 0)
    assert not cache.lacking
    assert not (tmp_path / compile_cache.KEPT).exists()


def test_torch_is_told_where_by_its_own_variables(before):
    cache = before("zygote")
    told = cache.environment
    assert told["TORCHINDUCTOR_CACHE_DIR"] == f"{cache.directory}/inductor"
    assert told["TRITON_CACHE_DIR"] == f"{cache.directory}/triton"
    assert cache.directory.is_absolute()
