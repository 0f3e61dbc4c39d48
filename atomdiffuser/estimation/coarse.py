"""First guesses of a translation: peaks of the normalised cross-correlation, lattice alternatives included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_OVERLAP = 0.2
MAX_PEAKS = 256
SHORT_SHIFT_SLACK = 0.25
SHORTEST_KEPT = 4  # on a lattice a drift of 0.9 periods has three shorter alternatives


@dataclass(frozen=True)
class Peaks:
    """The best shifts of n pairs, `count` each, best first.

    Attributes
    ----------
    shifts
        (n, count, 2) float64, where a reference point lies in the moving frame, (y, x) [samples].
    correlation
        (n, count), normalised over the overlap, −1…1; −inf where there are fewer peaks.
    behind
        (n, count) how far each stands behind the first, in σ of what noise does to their difference; 0 for the first.
    """

    shifts: Tensor
    correlation: Tensor
    behind: Tensor


def correlation_peaks(
    reference: Tensor,
    moving: Tensor,
    *,
    max_shift: float,
    count: int,
    separation: float,
    noise_power: tuple[Tensor, Tensor] | None = None,
    noise_width: tuple[float, float] = (0.0, 1e9),
) -> Peaks:
    """The best shifts between band-passed frames.

    Parameters
    ----------
    reference, moving
        (n, Y, X), local mean removed; invalid samples zero.
    max_shift
        Longest shift considered [samples].
    count
        Peaks per pair.
    separation
        Two peaks lie at least this far apart [samples].
    noise_power
        Variance of a raw sample in either frame, (n,) each; None: noise free.
    noise_width
        σ of the filter that the noise has passed, and of the local mean that was removed [samples].
    """
    shape = reference.shape[-2:]
    reach = [min(int(max_shift) + 2, n - 1) for n in shape]
    size = [_fast_length(n + r + 1) for n, r in zip(shape, reach, strict=True)]
    f_ref, f_mov = (torch.fft.rfft2(image, s=size) for image in (reference, moving))
    lags = [torch.arange(-r, r + 1, device=reference.device) for r in reach]
    window = lambda image: image[:, lags[0].remainder(size[0])][:, :, lags[1].remainder(size[1])]
    cross = window(torch.fft.irfft2(f_ref.conj() * f_mov, s=size))  # at lag d: Σ ref(q)·mov(q + d)
    energy = (_overlap_energy(reference, lags, 1) * _overlap_energy(moving, lags, -1)).clamp_min(0).sqrt()
    tiny = 1e-6 * energy.amax((-2, -1), keepdim=True) + 1e-30
    correlation = cross / energy.clamp_min(tiny)
    share = [1 - lag.abs() / n for lag, n in zip(lags, shape, strict=True)]
    allowed = (torch.hypot(lags[0][:, None].float(), lags[1][None, :].float()) <= max_shift) & (
        share[0][:, None] * share[1][None, :] >= MIN_OVERLAP
    )
    correlation = torch.where(allowed, correlation, -torch.inf)
    shifts, height = _separated_maxima(correlation, (reach[0], reach[1]), count, separation)
    behind = torch.zeros_like(height)
    if noise_power is not None:
        scatter = _difference_variance(f_ref, f_mov, noise_power, noise_width, shape, size, shifts)
        scale = energy[:, reach[0], reach[1]]
        behind = (height[:, :1] - height) * scale[:, None] / scatter.clamp_min(1e-30).sqrt()
        behind[:, 0] = 0.0
    return Peaks(shifts, height, behind)


def _overlap_energy(image: Tensor, lags: list[Tensor], sign: int) -> Tensor:
    """Energy of the part of an image (n, Y, X) that a shift by each lag leaves in view, (n, lags, lags)."""
    total = F.pad(image.double().square(), (1, 0, 1, 0)).cumsum(-1).cumsum(-2)
    (a_y, b_y), (a_x, b_x) = (
        ((-sign * lag).clamp_min(0), n - (sign * lag).clamp_min(0))
        for lag, n in zip(lags, image.shape[-2:], strict=True)
    )
    at = lambda y, x: total[:, y][:, :, x]
    return (at(b_y, b_x) - at(a_y, b_x) - at(b_y, a_x) + at(a_y, a_x)).float()


def _difference_variance(f_ref, f_mov, noise_power, noise_width, shape, size, shifts) -> Tensor:
    """Variance (n, count) that noise gives to the difference of the correlation at the first shift and at each."""
    fy = torch.fft.fftfreq(size[0], device=f_ref.device)[:, None]
    fx = torch.fft.rfftfreq(size[1], device=f_ref.device)[None, :]
    exponent = -2 * torch.pi**2 * (fy**2 + fx**2)
    passed = (torch.exp(exponent * noise_width[0] ** 2) * (1 - torch.exp(exponent * noise_width[1] ** 2))) ** 2
    first, second = (shape[0] * shape[1] * v.to(passed)[:, None, None] * passed for v in noise_power)
    power = lambda f: f.real.square() + f.imag.square()
    spread = power(f_ref) * second + power(f_mov) * first - first * second
    lagged = torch.fft.irfft2(spread / (shape[0] * shape[1]), s=size)
    apart = (shifts - shifts[:, :1]).round().long()
    rows = torch.arange(len(lagged), device=lagged.device)[:, None]
    return 2 * (lagged[:, :1, 0] - lagged[rows, apart[..., 0] % size[0], apart[..., 1] % size[1]])


def _separated_maxima(surface: Tensor, zero: tuple[int, int], count: int, separation: float) -> tuple[Tensor, Tensor]:
    """Peaks ranked by their interpolated height: on a lattice the heights differ by less than the pixel grid
    takes away.
    """
    reach = max(1, int(separation / 2))
    padded = F.pad(surface[:, None], (reach,) * 4, value=-torch.inf)
    highest = F.max_pool2d(F.max_pool2d(padded, (2 * reach + 1, 1), stride=1), (1, 2 * reach + 1), stride=1)[:, 0]
    peaks = torch.where(highest == surface, surface, -torch.inf).flatten(1)
    value, index = peaks.topk(min(MAX_PEAKS, peaks.shape[1]), dim=1)
    height, offset = _interpolated_height(surface, index)
    height = torch.where(torch.isfinite(value), height, value)
    width = surface.shape[-1]
    shifts = torch.stack([index // width - zero[0], index % width - zero[1]], dim=-1).double() + offset
    chosen = _best_and_shortest(height, shifts.norm(dim=-1), count)
    return shifts.gather(1, chosen[..., None].expand(-1, -1, 2)), height.gather(1, chosen)


def _best_and_shortest(height: Tensor, length: Tensor, count: int) -> Tensor:
    """Indices (n, count): the highest peaks, and among them always those of shortest shift that are nearly as high."""
    near = torch.where(height > height[:, :1].amax(1, keepdim=True) - SHORT_SHIFT_SLACK, length, torch.inf)
    shortest = near.argsort(dim=1)[:, : min(SHORTEST_KEPT, count - 1)]
    priority = height.clone()
    priority.scatter_(1, shortest, torch.where(torch.isfinite(near.gather(1, shortest)), 2.0, -torch.inf).to(height))
    priority[:, 0] = 3.0
    best = priority.topk(count, dim=1).indices
    order = height.gather(1, best).argsort(dim=1, descending=True)
    return best.gather(1, order)


def _interpolated_height(surface: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Top of the parabola through each peak and its neighbours along y and x: height (n, k) and offset (n, k, 2)
    [samples].
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


def _fast_length(n: int) -> int:
    import scipy.fft

    return scipy.fft.next_fast_len(n, real=True)
