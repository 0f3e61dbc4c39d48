import pytest
import torch

from atomdiffuser import geometry
from atomdiffuser.model.published import BlockNetwork, PublishedNetwork, rigid_affine


def test_pose_turns_about_the_centre_and_shifts():
    affine = rigid_affine(torch.tensor([[1.0, 0.5, 0.0]]), (64, 64))
    turn, scale, shear = geometry.rotation_scale_shear(affine)
    assert float(turn) == pytest.approx(5.0) and float(scale) == pytest.approx(1.0) and abs(float(shear)) < 1e-9
    torch.testing.assert_close(
        geometry.drift_at_centre(affine, (64, 64)), torch.tensor([[4.75, 0.0]], dtype=torch.float64)
    )


@pytest.mark.parametrize("kind", [PublishedNetwork, BlockNetwork])
def test_one_map_between_zero_and_one(kind, pairs):
    torch.manual_seed(0)
    answer = kind()(pairs.reference, pairs.moving, tau=0.5)
    assert answer.intensity.shape == pairs.reference.shape
    assert 0 < answer.intensity.min() and answer.intensity.max() < 1


def test_time_enters_the_published_network(pairs):
    torch.manual_seed(0)
    network = PublishedNetwork().eval()
    early, late = (network(pairs.reference, pairs.moving, tau=t).intensity for t in (0.1, 1.0))
    assert (early - late).abs().max() > 1e-4


def test_blocks_are_constant(pairs):
    torch.manual_seed(0)
    answer = BlockNetwork(block_px=32)(pairs.reference, pairs.moving).intensity
    assert torch.equal(answer[:, :32, :32], answer[:, :1, :1].expand(-1, 32, 32))
    assert not torch.equal(answer[:, 0, 0], answer[:, 0, 40])
