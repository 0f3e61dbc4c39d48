"""What the power spectrum of a series says: how wide the matched filter should be, and how large the lattice is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser.compiled import array, compiled_here

FILTER_CANDIDATES_PX = (0.8, 0.9, 1.0, 1.15, 1.3, 1.45, 1.6, 1.8, 2.0, 2.25, 2.5, 2.8, 3.2, 3.6, 4.0, 4.5, 5.0)
COARSE_BAND, COARSE_LOSS = 0.22, 0.03  # what lies above this frequency may be left to chance up to this share
SLOPE_NOISE = 0.3  # of the noise's power in slopes, left in clean ones
SAMPLE_SLOPE_NOISE = 0.03  # the same in slopes of the mean of ten frames
WINDOW_PX = 256
SMALLEST_WINDOW_PX = 96
WINDOWS_PER_AXIS = 5
TOGETHER_PX = 2**20  # of frames whose spectra are computed at once: what a cache holds
LOWEST_BIN = 4
PEAK_OVER_SURROUNDINGS = 20.0
PEAK_SHARE_OF_STRONGEST = 0.02
LONG_PERIOD = 0.9  # of the longest period that a window shows; a longer one is looked for in the whole frame
LIKE_NOTHING_NEARER = 0.1  # how much better an image resembles itself a long period away than less far away
NEARLY_AS_HIGH = 0.85
REPEATS = 0.6  # correlation with itself one period away, that a lattice reaches and speckle does not


@dataclass(frozen=True)
class ImageScales:
    """Lengths that the estimation needs, all in pixels.

    Attributes
    ----------
    filter_px
        σ of the Gaussian that serves as matched filter.
    base_px
        σ of the Gaussian that separates the local mean (base) from the structure around it (lattice).
    period_px
        Largest lattice period seen; None without a lattice.
    stride
        Between the pixels, along each axis, that say as much about drift as all of them do [px].
    sample_filter_px
        The matched filter's σ where frames are fitted to the mean of many, whose slopes hold hardly any noise: narrower
        at few counts.
    """

    filter_px: float
    base_px: float
    period_px: float | None
    stride: int = 2
    sample_filter_px: float | None = None

    def for_sample(self) -> ImageScales:
        """Those of fits to the mean of many frames."""
        return replace(self, filter_px=self.sample_filter_px or self.filter_px)


def measure_scales(frames: Tensor) -> ImageScales:
    """Scales of frames (n, Y, X), from their mean power spectrum."""
    power, frequency, floor = mean_power(frames)
    signal = clear_signal(power, floor, frames.shape[0])
    period = lattice_period(frames)
    filter_px, stride = _filter_and_stride(signal, frequency, floor)
    narrower = [w for w in FILTER_CANDIDATES_PX if w <= filter_px and _stride(signal, frequency, w) <= stride]
    to_sample_px = _matched_width(signal, frequency, floor, SAMPLE_SLOPE_NOISE, narrower, stride)
    shorter = min(frames.shape[-2:])
    base = 0.55 * period if period else shorter / 10
    base = float(min(max(base, 2 * filter_px, 3.0), shorter / 6))
    return ImageScales(filter_px, base, period, stride, to_sample_px)


def lattice_noise_energy(scales: ImageScales) -> float:
    """Σ of the squared kernel that leaves the lattice: matched filter less (matched filter, then local mean)."""
    a, b = scales.filter_px**2, scales.filter_px**2 + scales.base_px**2
    return 1 / (4 * math.pi) * (1 / a + 1 / b) - 1 / (math.pi * (a + b))


def mean_power(frames: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean power spectrum of frames (n, Y, X) under a Hann window, |frequency| [1/px], and the noise floor."""
    power, frequency, floor = mean_powers(frames[None])
    return power[0], frequency, float(floor)


def mean_powers(stacks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for many stacks of frames (m, n, Y, X): power (m, Y, X // 2 + 1), |frequency| and floors (m,)."""
    window, frequency, corners = _window_and_frequency(stacks.shape[-2:], str(stacks.device))
    n, power = stacks.shape[1], stacks.new_zeros(len(stacks), *frequency.shape)
    add_power = _add_power_by_loops if compiled_here(stacks.device) else _add_power
    for part in stacks.split(max(1, TOGETHER_PX // (len(stacks) * window.numel())), dim=1):
        add_power(part, window, power)
    power /= n * window.square().sum()
    below_mean = (1 - 1 / (9 * n)) ** 3  # median of n averaged exponentials (Wilson & Hilferty, 1931)
    return power, frequency, power.flatten(1)[:, corners].median(1).values / below_mean


def _add_power(stacks: Tensor, window: Tensor, power: Tensor) -> None:
    """Add the power of windowed frames (m, n, Y, X), their mean under the window taken out, to `power`."""
    mean = (stacks * window).sum((-2, -1), keepdim=True) / window.sum()
    spectra = torch.fft.rfft2((stacks - mean).mul_(window))
    power += (spectra.real.square() + spectra.imag.square()).sum(1)


def _add_power_by_loops(stacks: Tensor, window: Tensor, power: Tensor) -> None:
    """The same, on a processor."""
    from atomdiffuser.estimation.spectrum_kernels import add_power, windowed

    given, shown = array(stacks), torch.empty(stacks.shape)
    windowed(given.reshape(-1, *given.shape[2:]), array(window), shown.flatten(0, 1).numpy())
    add_power(array(torch.view_as_real(torch.fft.rfft2(shown)).flatten(-2)), power.numpy())


@lru_cache(maxsize=4)
def _window_and_frequency(shape: tuple[int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hann window (Y, X), |frequency| (Y, X // 2 + 1) [1/px], and numbers of those in the corners, where noise is."""
    window = torch.hann_window(shape[0], device=device)[:, None] * torch.hann_window(shape[1], device=device)
    fy, fx = torch.fft.fftfreq(shape[0], device=device), torch.fft.rfftfreq(shape[1], device=device)
    corners = (fy.abs()[:, None] > 0.4) & (fx[None, :] > 0.4)
    return window, torch.hypot(fy[:, None], fx[None, :]), torch.nonzero(corners.flatten())[:, 0]


def clear_signal(power: Tensor, floor: float | Tensor, n_frames: int) -> Tensor:
    """Power (…, Y, X) above the noise floor where it stands clear of it, 0 elsewhere.

    Where there is noise alone, half of the bins lie above the floor by chance. Weighted by f², the many bins at high
    frequencies would pass for fine structure, and ask for a filter too narrow at low counts.
    """
    smoothed = mean_of_neighbours(power)
    return torch.where(smoothed > floor * (1 + 8 / (5 * n_frames) ** 0.5), power - floor, 0.0)


def mean_of_neighbours(image: Tensor) -> Tensor:
    """Mean of each pixel of (…, Y, X) and those around it that there are."""
    if compiled_here(image.device):
        from atomdiffuser.estimation.spectrum_kernels import neighbours_mean

        out = torch.empty(image.shape)
        neighbours_mean(array(image).reshape(-1, *image.shape[-2:]), out.reshape(-1, *image.shape[-2:]).numpy())
        return out
    for axis in (-2, -1):
        total, count = image.clone(), torch.full((image.shape[axis],), 3.0, device=image.device)
        last = image.shape[axis] - 1
        total.narrow(axis, 0, last).add_(image.narrow(axis, 1, last))
        total.narrow(axis, 1, last).add_(image.narrow(axis, 0, last))
        count[[0, -1]] -= 1
        image = total / (count[:, None] if axis == -2 else count)
    return image


def _filter_and_stride(signal: Tensor, frequency: Tensor, floor: float) -> tuple[float, int]:
    """The matched filter for pairs, and 2 for the distance of cells where it leaves next to nothing in between."""
    width = _matched_width(signal, frequency, floor, SLOPE_NOISE, FILTER_CANDIDATES_PX, stride=2)
    if _stride(signal, frequency, width) == 2:
        return width, 2
    width = _matched_width(signal, frequency, floor, SLOPE_NOISE, FILTER_CANDIDATES_PX, stride=1)
    return width, _stride(signal, frequency, width)


def _matched_width(
    signal: Tensor, frequency: Tensor, floor: float, slope_noise: float, candidates: Sequence[float], stride: int
) -> float:
    """The σ of `candidates` that minimises the predicted variance of a shift between two noisy frames.

    For a filter H the variance is Σ f²(2SN + cN²)|H|²|H̃|² / (Σ f² S|H|²)², S and N the powers of signal and noise in a
    frame, c the share `slope_noise` of the slopes' noise that cleaning them leaves, and |H̃|² the sum of |H|² over the
    frequencies that cells of `stride` px cannot tell apart.
    """
    fy, fx = frequency[:, 0].double(), frequency[0].double()
    known = frequency**2 * (frequency < 0.5)
    noisy = (known * (2 * signal.clamp_min(0) * floor + slope_noise * floor**2)).double()
    clear = (known * signal).double()

    def variance(sigma: float) -> float:
        passed = lambda f: torch.exp(-((2 * math.pi * sigma * f) ** 2))  # of |H|², a product of both axes' shares
        aliased = lambda f: passed(f) + passed(f - 0.5) if stride == 2 else passed(f)
        y, x = passed(fy), passed(fx)
        top = (y * aliased(fy)) @ noisy @ (x * aliased(fx))
        bottom = (y @ clear @ x) ** 2
        return float(top / bottom.clamp_min(1e-30))

    return min(candidates, key=variance)


def _stride(signal: Tensor, frequency: Tensor, filter_px: float) -> int:
    """2 where a matched-filtered frame holds next to nothing that every second pixel would not show, else 1."""
    y, x = (torch.exp(-((2 * math.pi * filter_px * f) ** 2)) for f in (frequency[:, 0], frequency[0]))
    slope = frequency**2 * signal
    return 2 if float(y @ (slope * (frequency > COARSE_BAND)) @ x) <= COARSE_LOSS * float(y @ slope @ x) else 1


def lattice_period(frames: Tensor) -> float | None:
    """Largest lattice period in frames (n, Y, X) [px]; None without a lattice.

    Looks at windows of the field one by one: edges and amorphous areas spoil only the windows they are in. A window
    shows a lattice when its spectrum has isolated peaks in two directions (an edge has one), and the field does when
    its windows agree (amorphous speckle peaks elsewhere in each).
    """
    shorter = min(frames.shape[-2:])
    size = (
        min(WINDOW_PX, max(shorter // 2, min(shorter, SMALLEST_WINDOW_PX))) // 2 * 2
    )  # even, so that both halves of a spectrum match
    if size < 4 * LOWEST_BIN:
        return None
    corners = _window_corners(frames.shape[-2:], size)
    periods = torch.tensor([p for p in _window_periods(frames, corners, size) if p])
    longer = _long_period(frames, size)  # of a cell larger than that, windows show overtones alone
    if longer or len(periods) == 0:
        return longer
    step = float(periods.median()) / size  # from one frequency of a window to the next, as a share of the median's
    agree = (periods.median() / periods - 1).abs() < max(0.1, step)
    enough = max(min(2, len(corners)), math.ceil(len(periods) / 2))
    return float(periods[agree].median()) if int(agree.sum()) >= enough else None


def _long_period(frames: Tensor, windows_px: int) -> float | None:
    """A period that windows of `windows_px` are too small for, seen in the largest square about the centre."""
    size = min(frames.shape[-2:]) // 2 * 2
    if size < 1.5 * windows_px:
        return None
    corner = (frames.shape[-2] - size) // 2, (frames.shape[-1] - size) // 2
    power, frequency, floor = mean_power(frames[:, corner[0] : corner[0] + size, corner[1] : corner[1] + size])
    found = _window_period(power, floor, len(frames))
    if not found or found < LONG_PERIOD * windows_px / LOWEST_BIN:
        return None
    power = torch.where(frequency >= LOWEST_BIN / size / 2, power - floor, 0.0)
    correlation, distance = _self_correlation(power)
    highest = lambda low, high: float(correlation[(distance >= low * found) & (distance <= high * found)].max())
    return found if highest(0.9, 1.3) > highest(0.4, 0.85) + LIKE_NOTHING_NEARER else None


def lattice_vectors(frames: Tensor) -> Tensor | None:
    """The two shortest lattice vectors (2, 2) of frames (n, Y, X), rows (y, x) [px]; None where nothing repeats.

    Peaks of the frames' mean autocorrelation that are nearly as high as the highest away from zero: a pattern within
    the cell repeats less well than the cell. Their tops are interpolated.
    """
    power, _, floor = mean_power(frames)
    shape = frames.shape[-2:]
    hann = [torch.hann_window(n, device=frames.device) for n in shape]
    own = torch.fft.irfft2(torch.fft.rfft2(hann[0][:, None] * hann[1]).abs() ** 2, s=shape)
    power = (power - floor).clamp_min(0)
    power[:2, :2] = power[-1:, :2] = 0.0  # slow changes of the mean are no structure
    correlation = torch.fft.irfft2(power, s=shape) / (own / own[0, 0]).clamp_min(0.2)
    y, x = (torch.fft.fftfreq(n, 1 / n, device=frames.device) for n in shape)
    length = torch.hypot(y[:, None], x[None, :])
    around = F.pad(correlation[None, None], (2,) * 4, mode="circular")
    peak = (F.max_pool2d(around, 5, stride=1)[0, 0] == correlation) & (length > 4) & (length < 0.4 * min(shape))
    peak &= (y[:, None] > 0) | ((y[:, None] == 0) & (x[None, :] > 0))
    if not bool(peak.any()):
        return None
    peak &= correlation > NEARLY_AS_HIGH * correlation[peak].max()
    rows, columns = torch.nonzero(peak, as_tuple=True)
    vectors = torch.stack([y[rows], x[columns]], dim=1)
    for axis, (dy, dx) in enumerate(((1, 0), (0, 1))):
        at = lambda step, dy=dy, dx=dx: correlation[(rows + step * dy) % shape[0], (columns + step * dx) % shape[1]]
        curvature = (at(-1) - 2 * at(0) + at(1)).clamp_max(-1e-30)
        vectors[:, axis] += ((at(-1) - at(1)) / (2 * curvature)).clamp(-0.5, 0.5)
    vectors = vectors[vectors.norm(dim=1).argsort()]
    first = vectors[0]
    across = (vectors[:, 0] * first[1] - vectors[:, 1] * first[0]).abs() / (vectors.norm(dim=1) * first.norm())
    rest = vectors[across > 0.3]
    return torch.stack([first, rest[0]]) if len(rest) else None


def _window_corners(shape: tuple[int, int], size: int) -> list[tuple[int, int]]:
    starts = []
    for extent in shape:
        count = min(WINDOWS_PER_AXIS, max(1, 2 * (extent // size) - 1))
        starts.append([round(i * (extent - size) / max(count - 1, 1)) for i in range(count)])
    return [(y, x) for y in starts[0] for x in starts[1]]


def _window_periods(frames: Tensor, corners: list[tuple[int, int]], size: int) -> Iterator[float | None]:
    """The period that each square window shows."""
    together = max(1, TOGETHER_PX // (len(frames) * size**2))
    for at in range(0, len(corners), together):
        windows = [frames[:, y : y + size, x : x + size] for y, x in corners[at : at + together]]
        powers, _, floors = mean_powers(torch.stack(windows))
        for power, floor in zip(powers, floors.tolist(), strict=True):
            yield _window_period(power, floor, len(frames))


def _window_period(power: Tensor, floor: float, n_frames: int) -> float | None:
    """The longest period of a lattice, from the mean power (size, size // 2 + 1) of frames."""
    size, half = len(power), power
    power = torch.cat([power, power.flip(-1)[:, 1:-1].flip(0).roll(1, 0)], dim=1)  # both halves, (size, size)
    fy, fx, frequency = _square_frequencies(size, str(power.device))
    enough = max(4.0, 12 / n_frames**0.5)
    strong = power > enough * floor
    strong &= (frequency >= LOWEST_BIN / size) & (frequency < 0.45) & (fx >= 0)
    rows, columns = torch.nonzero(strong, as_tuple=True)

    def around(reach: int) -> Tensor:
        near = torch.arange(-reach, reach + 1, device=power.device)
        return power[(rows[:, None] + near)[:, :, None] % size, (columns[:, None] + near)[:, None, :] % size].flatten(1)

    top = around(2).amax(1) == power[rows, columns]
    rows, columns = rows[top], columns[top]
    isolated = power[rows, columns] > PEAK_OVER_SURROUNDINGS * around(6).median(1).values
    rows, columns = rows[isolated], columns[isolated]
    if len(rows) < 2:
        return None
    strength, angle, length = power[rows, columns], torch.atan2(fy[rows, 0], fx[0, columns]), frequency[rows, columns]
    strong = strength > PEAK_SHARE_OF_STRONGEST * strength.max()
    strength, angle, length = strength[strong], angle[strong], length[strong]
    apart = (angle - angle[strength.argmax()]).sin().abs()
    if not bool((apart > 0.3).any()):
        return None
    period = 1.0 / float(length.min())
    structure = torch.where(frequency[:, : half.shape[1]] >= LOWEST_BIN / size / 2, half - floor, 0.0)
    return period if _repeats(structure, 1.0 / float(length.max())) else None


def _repeats(structure: Tensor, shortest_px: float) -> bool:
    """Whether an image looks like itself elsewhere, from its power (size, size // 2 + 1) under a Hann window."""
    correlation, distance = _self_correlation(structure)
    away = (distance >= 0.8 * shortest_px) & (distance <= len(structure) / 4)
    return bool(correlation[away].max() > REPEATS)


def _self_correlation(power: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of a square image with itself from its power (size, size // 2 + 1), freed of its Hann window, and the
    distance of each lag [px].
    """
    autocorrelation = torch.fft.irfft2(power, s=2 * power.shape[:1])
    share, distance = _hann_overlap(len(autocorrelation), str(autocorrelation.device))
    return (autocorrelation / autocorrelation[0, 0]) / share, distance


@lru_cache(maxsize=16)
def _square_frequencies(size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies along y (size, 1) and x (1, size), and their length (size, size) [1/px]."""
    along = torch.fft.fftfreq(size, device=device)
    return along[:, None], along[None, :], torch.hypot(along[:, None], along[None, :])


@lru_cache(maxsize=16)
def _hann_overlap(size: int, device: str) -> tuple[Tensor, Tensor]:
    """How much of itself a Hann window still sees at each lag, 0.2 at least, and the lags' lengths [px]."""
    window = torch.hann_window(size, device=device)
    own = torch.fft.irfft(torch.fft.rfft(window).abs() ** 2, n=size)
    own = own / own[0]
    lag = torch.fft.fftfreq(size, 1 / size, device=device)
    return (own[:, None] * own).clamp_min(0.2), torch.hypot(lag[:, None], lag[None, :])
