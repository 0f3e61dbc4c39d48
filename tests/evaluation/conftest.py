import pytest
import torch

from atomdiffuser.simulation import PairRanges, simulate_pairs


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Small frames: threads that wait for each other on a busy machine cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def pairs():
    """Three pairs of named crystals, bright, little drift."""
    ranges = PairRanges(electrons=(100.0, 100.0), loss=(0.3, 0.5), undamaged=0.0, drift_periods=(0.0, 0.2))
    return simulate_pairs(3, (96, 128), 5, crystals=("SrTiO3",), ranges=ranges)
