"""The pair's structure without its noise: what is kept, what is not, and that blocks leave no seams."""

import pytest
import torch

from atomdiffuser.model.lattice_template import WHOLE_UP_TO_PX, lattice_template

NONE = torch.zeros(1, 2)


def crystal(shape: tuple[int, int], turn: float = 0.0) -> torch.Tensor:
    """A square lattice of 11 px between −1 and 1."""
    y, x = torch.meshgrid(*(torch.arange(float(s)) for s in shape), indexing="ij")
    turn = torch.tensor(turn)
    along, across = y * turn.cos() - x * turn.sin(), y * turn.sin() + x * turn.cos()
    return torch.cos(along * 0.57) * torch.cos(across * 0.57)


def shots(expected: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.poisson(expected, generator=generator)[None] for _ in range(2))
    return first, second


def likeness(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_lattice_stays_and_noise_goes():
    """At 3 electrons a pixel the frames are like the lattice to 0.7 at most, the template off its rims to 0.97."""
    lattice = crystal((160, 192))
    reference, moving = shots(3.0 + 2.0 * lattice)
    found = lattice_template(reference / 3, moving / 3, torch.ones_like(reference), torch.tensor([3.0]), NONE)
    assert likeness(reference[0] + moving[0], lattice) < 0.7
    inner = (slice(20, -20), slice(20, -20))
    assert likeness(found.structure[0][inner], lattice[inner]) > 0.97
    assert float(found.passed.max()) < 0.02


def test_noise_alone_does_not_pass_for_structure():
    reference, moving = shots(torch.full((160, 192), 20.0))
    found = lattice_template(reference / 20, moving / 20, torch.ones_like(reference), torch.tensor([20.0]), NONE)
    assert float(found.passed.max()) < 0.001
    assert float(found.structure.std()) < 0.1 * float((reference / 20).std())


def test_pixels_without_data_take_no_part():
    lattice = crystal((160, 192))
    reference, moving = shots(20.0 + 10.0 * lattice)
    mask = torch.ones_like(reference)
    mask[:, 70:76] = 0
    level = torch.tensor([20.0])
    spoiled = torch.where(mask > 0, moving, 4000.0)
    first, second = (lattice_template(reference / 20, m / 20, mask, level, NONE) for m in (moving, spoiled))
    torch.testing.assert_close(first.structure, second.structure)
    assert not first.structure[mask == 0].any()


def test_large_frames_are_filtered_in_blocks_without_seams():
    """Two grains turned against each other, in a frame of several blocks: close to the truth at every column."""
    shape = (WHOLE_UP_TO_PX + 150, 300)
    lattice = torch.where(torch.arange(shape[0])[:, None] < 270, crystal(shape), crystal(shape, 0.6))
    reference, moving = shots(10.0 + 6.0 * lattice)
    found = lattice_template(reference / 10, moving / 10, torch.ones_like(reference), torch.tensor([10.0]), NONE)
    scaled = found.structure[0] * 10 / 2
    rows = [likeness(scaled[r : r + 16], lattice[r : r + 16]) for r in range(8, shape[0] - 24, 16)]
    assert min(rows) > 0.9
    slopes = [float((scaled[r : r + 16] * lattice[r : r + 16]).sum() / lattice[r : r + 16].square().sum())
              for r in range(8, shape[0] - 24, 16)]  # fmt: skip
    assert slopes == pytest.approx([6.0] * len(slopes), abs=1.5)
