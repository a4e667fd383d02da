"""One cluster for the tests of this folder, and the studies that it runs."""

from __future__ import annotations

from typing import Any

import pytest

from cluster_study import ClusterStudy
from private_slurm import PrivateSlurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    made = PrivateSlurm(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def study(cluster, tmp_path_factory):
    """Makes studies: study(config, toys=True)."""

    def make(config: dict[str, Any], toys: bool = False) -> ClusterStudy:
        return ClusterStudy(cluster, tmp_path_factory.mktemp("study") / "crewbench", config, toys)

    return make
