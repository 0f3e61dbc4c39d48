"""First guesses of a translation: peaks of the normalised cross-correlation, lattice alternatives included."""

from __future__ import annotations

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser.compiled import array, compiled_here

MIN_OVERLAP = 0.2
MAX_PEAKS = 256
SHORT_SHIFT_SLACK = 0.1


def correlation_peaks(
    reference: Tensor, moving: Tensor, *, max_shift_px: float, count: int, separation_px: float
) -> tuple[Tensor, Tensor]:
    """The best shifts between band-passed frames.

    Parameters
    ----------
    reference, moving
        (n, Y, X), local mean removed; invalid pixels zero.
    max_shift_px
        Longest shift considered [px].
    count
        Peaks per pair.
    separation_px
        Two peaks lie at least this far apart [px].

    Returns
    -------
    shifts
        (n, count, 2) float64, where a reference point lies in the moving frame, (y, x) [px].
    correlation
        (n, count), normalised over the overlap, −1…1, best first; −inf where there are fewer peaks.
    """
    height, width = reference.shape[-2:]
    reach = [min(int(max_shift_px) + 2, n - 1) for n in (height, width)]
    size = [scipy.fft.next_fast_len(n + r + 1, real=True) for n, r in zip((height, width), reach, strict=True)]
    f_ref, f_mov = (torch.fft.rfft2(image, s=size) for image in (reference, moving))
    cross = torch.fft.irfft2(f_ref.conj() * f_mov, s=size)  # at lag d: Σ ref(q)·mov(q + d)
    normalised = _normalised_by_loops if compiled_here(reference.device) else _normalised
    correlation = normalised(cross, reference, moving, (reach[0], reach[1]), max_shift_px)
    return _separated_maxima(correlation, (reach[0], reach[1]), count, separation_px)


def _normalised(
    cross: Tensor, reference: Tensor, moving: Tensor, reach: tuple[int, int], max_shift_px: float
) -> Tensor:
    """Correlation over the overlap at all lags (n, 2r + 1, 2r' + 1) that are allowed, −inf at others."""
    (height, width), size = reference.shape[-2:], cross.shape[-2:]
    dy, dx = (torch.arange(-r, r + 1, device=reference.device) for r in reach)
    cross = cross[:, dy.remainder(size[0])][:, :, dx.remainder(size[1])]
    scale = (_energy_in_view(reference, dy, dx) * _energy_in_view(moving, -dy, -dx)).clamp_min(0).sqrt()
    tiny = 1e-6 * scale.amax((-2, -1), keepdim=True) + 1e-30
    correlation = cross / scale.clamp_min(tiny)
    overlap = (1 - dy.abs() / height)[:, None] * (1 - dx.abs() / width)
    allowed = (torch.hypot(dy[:, None].float(), dx.float()) <= max_shift_px) & (overlap >= MIN_OVERLAP)
    return torch.where(allowed, correlation, -torch.inf)


def _normalised_by_loops(
    cross: Tensor, reference: Tensor, moving: Tensor, reach: tuple[int, int], max_shift_px: float
) -> Tensor:
    """The same, on a processor."""
    from atomdiffuser.estimation import coarse_kernels

    correlation = np.empty((len(cross), *(2 * r + 1 for r in reach)), np.float32)
    coarse_kernels.normalised(*(array(t) for t in (cross, reference, moving)), max_shift_px, MIN_OVERLAP, correlation)
    return torch.from_numpy(correlation)


def _energy_in_view(image: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Σ image(q)² over the pixels q of (n, Y, X) for which q + d lies in the frame too, at all lags d, (n, dy, dx)."""
    total = F.pad(image.double().square(), (1, 0, 1, 0)).cumsum(-1).cumsum(-2)
    (y0, y1), (x0, x1) = (
        ((-d).clamp_min(0), n - d.clamp_min(0)) for d, n in zip((dy, dx), image.shape[-2:], strict=True)
    )
    at = lambda y, x: total[:, y][:, :, x]
    return (at(y1, x1) - at(y0, x1) - at(y1, x0) + at(y0, x0)).float()


def _separated_maxima(
    surface: Tensor, zero: tuple[int, int], count: int, separation_px: float
) -> tuple[Tensor, Tensor]:
    """Peaks ranked by their interpolated height: on a lattice the heights differ by less than the pixel grid
    takes away.
    """
    reach = max(1, int(separation_px / 2))
    padded = F.pad(surface[:, None], (reach,) * 4, value=-torch.inf)
    highest = F.max_pool2d(F.max_pool2d(padded, (2 * reach + 1, 1), stride=1), (1, 2 * reach + 1), stride=1)[:, 0]
    is_peak = highest == surface
    peaks = torch.where(is_peak, surface, torch.full_like(surface, -torch.inf)).flatten(1)
    value, index = peaks.topk(min(MAX_PEAKS, peaks.shape[1]), dim=1)
    height, offset = _interpolated_height(surface, index)
    height = torch.where(torch.isfinite(value), height, value)
    width = surface.shape[-1]
    shifts = torch.stack([index // width - zero[0], index % width - zero[1]], dim=-1).double() + offset
    chosen = _best_and_shortest(height, shifts.norm(dim=-1), count)
    return shifts.gather(1, chosen[..., None].expand(-1, -1, 2)), height.gather(1, chosen)


def _best_and_shortest(height: Tensor, length: Tensor, count: int) -> Tensor:
    """Indices (n, count): the highest peaks, and among them always the two of shortest shift that are nearly as
    high.
    """
    near = torch.where(height > height[:, :1].amax(1, keepdim=True) - SHORT_SHIFT_SLACK, length, torch.inf)
    shortest = near.argsort(dim=1)[:, :2]
    priority = height.clone()
    priority.scatter_(1, shortest, torch.where(torch.isfinite(near.gather(1, shortest)), 2.0, -torch.inf).to(height))
    best = priority.topk(count, dim=1).indices
    order = height.gather(1, best).argsort(dim=1, descending=True)
    return best.gather(1, order)


def _interpolated_height(surface: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Top of the parabola through each peak and its neighbours along y and x: height (n, k) and offset (n, k, 2)
    [px].
    """
    rows, width = torch.arange(surface.shape[0], device=surface.device)[:, None], surface.shape[-1]
    y, x = index // width, index % width
    at = lambda dy, dx: surface[rows, (y + dy).clamp(0, surface.shape[1] - 1), (x + dx).clamp(0, width - 1)]
    centre, height, offsets = at(0, 0), at(0, 0), []
    for dy, dx in ((1, 0), (0, 1)):
        before, after = at(-dy, -dx), at(dy, dx)
        curvature = before - 2 * centre + after
        usable = torch.isfinite(curvature) & (curvature < 0)
        offset = torch.where(usable, (before - after) / (2 * torch.where(usable, curvature, -1.0)), 0.0).clamp(
            -0.5, 0.5
        )
        height = height - torch.where(usable, (before - after) * offset / 4, 0.0)
        offsets.append(offset)
    return height, torch.stack(offsets, dim=-1).double()
