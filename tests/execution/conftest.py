"""One trial of each mode, run once by the real script, for all tests here to look at."""

import pytest

from installed import missing, require
from made_study import Study

MODES = {
    "parallel": {"gpus": 3},
    "auto_expand": {"gpus": 4, "agents": 8},
    "sequential": {},
    "shared": {},
    "cooperative": {},
    "hierarchical": {"gpus": 2},
    "served": {"engine": "transformers-serve"},
    "actors": {"gpus": 2},
}
EXTRAS = {"served": "serving", "actors": "ray"}


class Results(dict):
    """mode -> Result, run when it is first asked for. Asked for a mode that cannot run here, the test is
    skipped or fails."""

    def __init__(self, study):
        self.study = study

    def __missing__(self, mode):
        if mode in EXTRAS:
            require(EXTRAS[mode])
        (trial_id,) = (t for t, of in self.study.modes.items() if of == mode)
        self[mode] = self.study.run(trial_id)
        return self[mode]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def results(tmp_path_factory, models):
    """mode -> Result, three agents (auto_expand: eight), one warm round."""
    here = {
        mode: options for mode, options in MODES.items() if mode not in EXTRAS or not missing(EXTRAS[mode])
    }
    runs = [{"mode": mode, "agents": 3, **options} for mode, options in here.items()]
    return Results(Study(tmp_path_factory.mktemp("study") / "s", {"warm_rounds": 1, "runs": runs}, models))


@pytest.fixture(scope="session")
def small_study(tmp_path_factory, models):
    """Makes a Study from a config."""

    def make(config):
        return Study(tmp_path_factory.mktemp("study") / "s", config, models)

    return make
