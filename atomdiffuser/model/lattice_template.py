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
EDGE_CELLS = (2.0, 4.0)
"""Standard deviations of the windows in which edges are told [cells]."""
LARGEST_STEP = 0.12  # relative change of the local mean within its own width
SHARP = 1.5  # slope in the narrow window over that in the wide one, where an edge is: a step has 2, a slope 1
SHARP_CELLS = 3  # as far from there a rim may reach
SEEN_AROUND = 0.9  # of the wide window: at the end of a view its mean lags behind any slope
EMPTY_SHARE = 0.1  # of the frame's mean: where there is less, this is what changes are compared with


@dataclass(frozen=True)
class Edges:
    """Edges of the specimen in n frames.

    Attributes
    ----------
    rim
        (n, y, x) 1 close to an edge, 0 elsewhere.
    dark
        (n, y, x) bool, of an edge's two sides the one where there is less.
    """

    rim: Tensor
    dark: Tensor


@dataclass(frozen=True)
class LatticeTemplate:
    """T of n pairs, on whole frames.

    Attributes
    ----------
    structure
        (n, y, x) in the units of the frames, 0 where nothing stands clear of the noise.
    passed
        (n, y, x) share of the noise that came through the filter.
    edges
        Of the specimen, None without any: there local means are those of the own side, for a step of the mass does not
        fade with the lattice, and would pass for one that lasts.
    """

    structure: Tensor
    passed: Tensor
    edges: Edges | None


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
        edges = find_edges(reference, mask)
        both = (reference + moving) * mask
        variance = ((both / level[:, None, None] + excess) * mask).clamp_min(0)
        structure = without_mean(both, mask, edges)
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
        return LatticeTemplate(total / weights * mask, passed / weights, edges)


def without_mean(image: Tensor, mask: Tensor, edges: Edges | None = None) -> Tensor:
    """(n, y, x) less its local mean over the pixels of `mask`; 0 outside. Close to edges the other side's pixels are
    left out of it.
    """
    if edges is None:
        return (image - _local_mean(image, mask)) * mask
    of_bright, of_dark = (_local_mean(image, mask * (1 - edges.rim * other)) for other in (edges.dark, ~edges.dark))
    return (image - torch.where(edges.dark, of_dark, of_bright)) * mask


def _local_mean(image: Tensor, mask: Tensor) -> Tensor:
    return _pixels(_mean(gaussian_mean(_cells(image, mask), MEAN_CELLS)), image.shape[-2:])


def _cells(image: Tensor, mask: Tensor) -> Tensor:
    """(n, 2, y/4, x/4): what the pixels of `mask` add to each cell, and how many they are, as shares of a full one."""
    padding = [-s % MAP_STRIDE for s in image.shape[-2:]]
    return F.avg_pool2d(F.pad(torch.stack([image * mask, mask], 1), (0, padding[1], 0, padding[0])), MAP_STRIDE)


def _mean(cells: Tensor) -> Tensor:
    """(n, 1, y/4, x/4) of such cells: the mean of the pixels that count."""
    return cells[:, :1] / cells[:, 1:].clamp_min(1e-3)


def _pixels(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Linear between cells (n, 1, y/4, x/4), (n, y, x)."""
    full = F.interpolate(cells, scale_factor=MAP_STRIDE, mode="bilinear", align_corners=False)
    return full[:, 0, : size[0], : size[1]]


def find_edges(image: Tensor, mask: Tensor) -> Edges | None:
    """Where the local mean of an image (n, y, x) has a step; None where it has none anywhere.

    It must change much within its own width, for a narrow window, which says where the edge is, and for a wide one, in
    which no lattice is left; and close by steeper for the narrow one, as slopes that are merely steep do not.
    """
    cells = _cells(image, mask)
    if min(cells.shape[-2:]) < 2:
        return None
    total, covered = cells.sum((2, 3), keepdim=True).split(1, 1)
    floor = EMPTY_SHARE * total / covered.clamp_min(1)
    narrow, wide = (gaussian_mean(cells, width) for width in EDGE_CELLS)
    means = [_mean(found).clamp_min(0) for found in (narrow, wide)]
    slopes = [torch.hypot(*torch.gradient(mean, dim=(2, 3))) for mean in means]
    rim = torch.ones_like(wide[:, :1], dtype=torch.bool)
    for width, mean, slope in zip(EDGE_CELLS, means, slopes, strict=True):
        rim &= slope * width > LARGEST_STEP * torch.maximum(mean, floor)
    sharp = rim & (slopes[0] > SHARP * slopes[1]) & (wide[:, 1:] > SEEN_AROUND)
    rim &= F.max_pool2d(sharp.float(), 2 * SHARP_CELLS + 1, 1, SHARP_CELLS) > 0
    if not bool(rim.any()):
        return None
    size = image.shape[-2:]
    return Edges(_pixels(rim.float(), size), _pixels(means[0] - means[1], size) < 0)


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
