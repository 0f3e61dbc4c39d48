"""What the two frames of an aligned pair have in common: their structure with most of the noise taken out.

A crystal gathers its signal in few Bragg spots, noise spreads over all frequencies. The sum of both frames, without its
local mean, keeps in Fourier space what stands clear of the noise. The result T(p) is an *instrument* for the contrast:

    κ = ⟨moving·T⟩ / ⟨reference·T⟩

over any window is consistent whatever T is, as long as the noise of the frames does not reach it; the little that does
(the share of frequencies kept) is known and taken out. So the noise in the reference costs neither bias, as in a plain
regression on it, nor precision, as in a corrected one (Wald 1940, doi:10.1214/aoms/1177731868; instrumental variables).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser.model.config import MAP_STRIDE
from atomdiffuser.model.layers import full_precision

BLOCK_PX = 256
"""Sides of the blocks that a large frame is filtered in: a crystal that bends or ends keeps its own spots."""
WHOLE_UP_TO_PX = 384  # a side up to this is one block
SPOT_BINS = 3  # frequencies that spectral power is averaged over, either way
LEAST_POWER = 3.0  # over the noise: nine averaged frequencies of noise alone hardly ever exceed it
LONGEST_PX = 64.0  # longer waves belong to the mean
MEAN_CELLS = 2.0
"""Standard deviation of the window of the local mean that is taken out of the frames [cells]."""


@dataclass(frozen=True)
class LatticeTemplate:
    """T of n pairs, on whole frames.

    Attributes
    ----------
    structure
        (n, y, x) in the units of the frames, 0 where nothing stands clear of the noise.
    passed
        (n, y, x) share of the noise that came through the filter.
    """

    structure: Tensor
    passed: Tensor


def lattice_template(
    reference: Tensor, moving: Tensor, mask: Tensor, level: Tensor, readout: Tensor
) -> LatticeTemplate:
    """T from an aligned pair (n, y, x) in electrons over `level` (n,), 0 where `mask` is 0.

    Parameters
    ----------
    readout
        (n, 2) variance [electrons²] of a pixel of either frame beyond its shot noise.
    """
    with full_precision(reference.device):
        excess = (readout.sum(1) / level.square())[:, None, None]
        both = (reference + moving) * mask
        variance = ((both / level[:, None, None] + excess) * mask).clamp_min(0)
        structure = without_mean(both, mask)
        size = structure.shape[-2:]
        total, passed, weights = (torch.zeros_like(structure) for _ in range(3))
        for rows, row_weight in _blocks(size[0], structure.device):
            for columns, column_weight in _blocks(size[1], structure.device):
                part = (slice(None), rows, columns)
                weight = row_weight[:, None] * column_weight
                kept, share = _filtered(structure[part], variance[part])
                total[part] += kept * weight
                passed[part] += share[:, None, None] * weight
                weights[part] += weight
        return LatticeTemplate(total / weights * mask, passed / weights)


def without_mean(image: Tensor, mask: Tensor) -> Tensor:
    """(n, y, x) less its local mean over the pixels of `mask`; 0 outside."""
    size = image.shape[-2:]
    padding = [-s % MAP_STRIDE for s in size]
    both = F.pad(torch.stack([image * mask, mask], 1), (0, padding[1], 0, padding[0]))
    cells = gaussian_mean(F.avg_pool2d(both, MAP_STRIDE), MEAN_CELLS)
    mean = cells[:, :1] / cells[:, 1:].clamp_min(1e-3)
    full = F.interpolate(mean, scale_factor=MAP_STRIDE, mode="bilinear", align_corners=False)
    return (image - full[:, 0, : size[0], : size[1]]) * mask


def gaussian_mean(cells: Tensor, width: float) -> Tensor:
    """(n, k, y, x) under a Gaussian of `width` cells, cut at four; nothing lies beyond the frame."""
    reach = int(4 * width)
    at = torch.arange(-reach, reach + 1, device=cells.device, dtype=torch.float32)
    weight = torch.exp(-0.5 * (at / width).square())
    weight = weight / weight.sum()
    n, k = cells.shape[:2]
    flat = cells.flatten(0, 1)[:, None]
    flat = F.conv2d(flat, weight[None, None, :, None], padding=(reach, 0))
    return F.conv2d(flat, weight[None, None, None, :], padding=(0, reach))[:, 0].unflatten(0, (n, k))


def _filtered(structure: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """A block (n, y, x) with the frequencies that stand clear of noise of that variance, and their share (n,)."""
    ny, nx = structure.shape[-2:]
    taper = torch.outer(*(_hann(s, structure.device) for s in (ny, nx)))
    power = torch.fft.fft2(structure * taper).abs().square()
    noise = (variance * taper.square()).sum((1, 2)).clamp_min(1e-12)
    edge = SPOT_BINS // 2
    around = F.avg_pool2d(F.pad(power[:, None], (edge,) * 4, mode="circular"), SPOT_BINS, stride=1)[:, 0]
    response = (1 - LEAST_POWER * noise[:, None, None] / around.clamp_min(1e-20)).clamp_min(0)
    fy, fx = (torch.fft.fftfreq(s, device=structure.device) for s in (ny, nx))
    response = response * (torch.hypot(fy[:, None], fx) > 1 / LONGEST_PX)
    return torch.fft.ifft2(torch.fft.fft2(structure) * response).real, response.mean((1, 2))


def _hann(size: int, device: torch.device) -> Tensor:
    """Square root of a Hann window: leaks little and forgets little."""
    return torch.hann_window(size, periodic=False, device=device).sqrt()


def _blocks(size: int, device: torch.device) -> list[tuple[slice, Tensor]]:
    """Places of the blocks along one side, half overlapping, each with its weights."""
    if size <= WHOLE_UP_TO_PX:
        return [(slice(0, size), torch.ones(size, device=device))]
    number = -(-(size - BLOCK_PX) // (BLOCK_PX // 2)) + 1
    starts = [round(k * (size - BLOCK_PX) / (number - 1)) for k in range(number)]
    weight = torch.hann_window(BLOCK_PX + 2, periodic=False, device=device)[1:-1]
    return [(slice(s, s + BLOCK_PX), weight) for s in starts]
