import pytest
import torch

from atomdiffuser.model import AtomDiffuser, ModelConfig
from atomdiffuser.simulation import PairRanges, simulate_pairs

TINY = ModelConfig(
    decoder_widths=(12, 16, 16, 16), decoder_blocks=1, condition=16, shift_width=8, step_width=12, step_blocks=2,
)  # fmt: skip
RANGES = PairRanges(particle_drift_px=8, period_px=(7.0, 14.0), max_waves=100)


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Frames here are small: threads that wait for each other on a busy machine cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def pairs():
    """Four pairs of frames that are not square."""
    return simulate_pairs(4, (64, 96), 7, ranges=RANGES)


@pytest.fixture
def network():
    """A fresh small network, pushed away from its start so that no answer is trivial."""
    torch.manual_seed(3)
    model = AtomDiffuser(TINY)
    with torch.no_grad():
        model.decoder.leave.weight.mul_(4)
        for step in model.steps:
            step.leave.weight.mul_(3)
    return model.eval()


@pytest.fixture(scope="session")
def tiny():
    """Settings of the smallest network worth testing."""
    return TINY
