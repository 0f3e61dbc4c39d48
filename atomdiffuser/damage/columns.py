"""Atomic columns followed one by one, where they are resolved: brightness, and motion that drift does not explain.

Columns are the maxima of the template, the mean of all aligned frames, and of the mean of the first few, which still
has those that vanish early. In each raw frame a column's neighbourhood is

    I − ⟨I⟩ = c + a·[(T − B) − d_y·∂T/∂y − d_x·∂T/∂x]

with local means ⟨I⟩ and B, and the template T moved there: a linear fit for amplitude a and displacement d, whose noise
follows from the counts. The template is a little blurred against a frame; a factor from its spectrum corrects d. What
all columns of a frame share is drift that was left over, and is taken out.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
import scipy.fft
import scipy.ndimage
import scipy.spatial
import scipy.special
import torch

from atomdiffuser.damage.analysis import Measurement
from atomdiffuser.damage.atom_sums import atoms_of_pixels, fit_images, fit_sums, strips, sum_by_atom
from atomdiffuser.damage.signals import Z95
from atomdiffuser.damage.spots import sampled
from atomdiffuser.damage.template import Template
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.template import sum_template
from atomdiffuser.interpolation import filter_separable, sample_spline

logger = logging.getLogger(__name__)

LEAST_HEIGHT = 0.25  # over the local mean, as a share of a bright column's
LEAST_SIGNIFICANCE = 6.0  # of a column in the template
LEAST_SPACING_PX = 5.0
MOST_FOLLOWED = 2**22
"""Columns times frames that are followed at most: 28 bytes each are kept."""
LARGEST_SIGMA_PX = 1.0  # of a displacement in one frame, above which it says nothing
NEAREST = 0.45  # of the distance between columns: what is nearer to one belongs to it
LOST = 0.3  # share of a column's brightness, against what the others kept
HOPPED = 0.2  # of the distance between columns
CERTAIN = 4.0  # standard deviations of a displacement
SPOTS = 20  # of the strongest, the last of which says what is strong
DIFFERENCE = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)
TABLE = (
    "column", "region", "y_px", "x_px", "y_nm", "x_nm", "intensity", "amplitude_first", "amplitude_last", "msd_px2",
    "msd_sigma_px2", "msd_nm2", "displacement_y_px", "displacement_x_px", "state", "n_frames",
)  # fmt: skip
OF_REGION = tuple(
    f"{name}{end}" for name in ("n_columns", "column_intensity", "column_msd_px2") for end in ("", "_lo95", "_hi95")
)


@dataclass(frozen=True)
class ColumnTracks:
    """n columns at `position_px` (n, 2) on the reference grid, in each of t frames.

    `intensity` (t, n) mean counts around a column with its σ, `amplitude` (t, n) over the template's with its σ,
    `displacement_px` (t, n, 2) against the template with `displacement_sigma_px` (t, n) per axis; NaN where a frame
    shows too little. All float32.
    """

    position_px: np.ndarray
    spacing_px: float
    intensity: np.ndarray
    intensity_sigma: np.ndarray
    amplitude: np.ndarray
    amplitude_sigma: np.ndarray
    displacement_px: np.ndarray
    displacement_sigma_px: np.ndarray

    def in_frame(self, k: int) -> ColumnTracks:
        """Frame `k` alone: (n,) and (n, 2), float64."""
        names = [f.name for f in fields(self) if f.name not in ("position_px", "spacing_px")]
        return replace(self, **{name: getattr(self, name)[k].astype(float) for name in names})

    def msd(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) mean square displacement about each column's mean place, noise subtracted, and its 1 σ [px²]."""
        n = np.isfinite(self.displacement_px[..., 0]).sum(0)
        mean, square = _mean(self.displacement_px, slice(None)), np.zeros(len(n))
        for places in self.displacement_px:
            square += np.nan_to_num(((places - mean) ** 2).sum(-1))
        noise = 2 * _mean(self.displacement_sigma_px, slice(None), power=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            square /= n - 1
            sigma = np.maximum(square, noise) / np.sqrt(np.maximum(n - 1, 1))
        enough = n >= 3
        return np.where(enough, square - noise, np.nan), np.where(enough, sigma, np.nan)


def find_columns(template: Template, period_px: float | None, variance: float) -> tuple[np.ndarray, float]:
    """Places (n, 2) of columns on the reference grid, and their typical spacing [px]; none where they are unresolved.

    `variance` is that of the template's typical pixel.
    """
    nothing = np.zeros((0, 2)), np.nan
    if period_px is None:
        return nothing
    mean, base = (sampled(c)[0].cpu().numpy() for c in (template.mean_coefficients, template.base_coefficients))
    height = np.where(template.crystal[0].cpu().numpy(), mean - base, -np.inf)
    reach = max(2, round(0.18 * period_px))
    top = (scipy.ndimage.maximum_filter(height, size=2 * reach + 1) == height) & np.isfinite(height)
    margin = reach + 2
    top[:margin], top[-margin:], top[:, :margin], top[:, -margin:] = False, False, False, False
    if not top.any():
        return nothing
    bright = np.quantile(height[top], 0.9)
    top &= height > max(LEAST_HEIGHT * bright, LEAST_SIGNIFICANCE * np.sqrt(variance))
    rows, columns = np.nonzero(top)
    if len(rows) < 12:
        return nothing
    places = np.stack([rows, columns], 1) + _peak_offset(mean, rows, columns)
    spacing = float(np.median(scipy.spatial.cKDTree(places).query(places, k=2)[0][:, 1]))
    return (places, spacing) if spacing >= LEAST_SPACING_PX else nothing


def track_columns(
    source: FrameSource,
    frame_from_reference: np.ndarray,
    measured: Measurement,
    advance: Callable[[], None] | None = None,
) -> ColumnTracks:
    """Follow every column through the frames."""
    template, t = measured.template, measured.n_frames
    places, spacing = _all_columns(source, frame_from_reference, measured)
    if t * len(places) > MOST_FOLLOWED:
        logger.warning("%d atomic columns in %d frames are too many to follow: none is", len(places), t)
        places = places[:0]
    n = len(places)
    shape = lambda *rest: np.full((t, n, *rest), np.nan, np.float32)
    tracks = ColumnTracks(places, spacing, shape(), shape(), shape(), shape(), shape(2), shape())
    if n == 0:
        return tracks
    labels = _nearest_column(places, NEAREST * spacing, source.shape)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)[:n]  # pixels of each column
    column_image = torch.from_numpy(labels).to(source.device)
    gradient = [_gradient(template, axis) for axis in (0, 1)]
    factor = _blur_factor(template, source.scales.filter_px)
    for k in source.each(np.flatnonzero(measured.accepted.any(1))):
        seen = template.on_frame(source, int(k), torch.as_tensor(frame_from_reference[k]))
        raw, base = source.raw(int(k)), source.prepared([int(k)]).base
        sums = np.zeros((1 + 4 + 4 * 5, n))
        for rows in strips(raw):
            here, counts = seen.rows(rows), raw[:, rows]
            own = atoms_of_pixels(here.y, here.x, here.inside, column_image, n)
            parts = [torch.ones_like(counts), here.mean - here.base]
            parts += [-sample_spline(g, here.y, here.x) for g in gradient]
            structure = counts - base[:, rows]  # slopes of the local mean would pass for displacements
            variance_px = source.noise.variance(here.mean.clamp_min(0))
            sums += sum_by_atom(itertools.chain([counts], fit_images(structure, parts, variance_px)), own, n)
        normal, spread, right = fit_sums(sums[1:], 4)
        _solve_frame(tracks, k, normal, spread, right, factor, sizes)
        with np.errstate(divide="ignore", invalid="ignore"):
            followed = np.isfinite(tracks.amplitude[k])
            tracks.intensity[k] = np.where(followed, sums[0] / normal[:, 0, 0], np.nan)
            tracks.intensity_sigma[k] = np.where(followed, np.sqrt(spread[:, 0, 0]) / normal[:, 0, 0], np.nan)
        if advance:
            advance()
    return tracks


def _all_columns(
    source: FrameSource, frame_from_reference: np.ndarray, measured: Measurement
) -> tuple[np.ndarray, float]:
    """Places (n, 2) of the columns that the template shows, then of those that only its first frames do; spacing."""
    template, period_px = measured.template, source.scales.period_px
    count = template.looks()
    level = float(sampled(template.base_coefficients).median())
    blur = 1 / (4 * np.pi * source.scales.filter_px**2)
    variance = float(source.noise.variance(torch.tensor(max(level, 0.0)))) * blur / count
    places, spacing = find_columns(template, period_px, variance)
    if len(places):
        early, looked = _early_template(source, frame_from_reference, measured)
        vanished, _ = find_columns(early, period_px, variance * count / looked)
        places = _with_further(places, vanished, NEAREST * spacing)
    return places, spacing


def column_table(
    tracks: ColumnTracks, measured: Measurement, pixel_size_nm: tuple[float, float] | None
) -> pd.DataFrame:
    """columns.parquet."""
    n = len(tracks.position_px)
    if n == 0:
        return pd.DataFrame(columns=list(TABLE))
    first, last = _thirds(measured)
    step = np.array(pixel_size_nm) if pixel_size_nm else np.full(2, np.nan)
    msd, msd_sigma = tracks.msd()
    early, late = (_mean(tracks.amplitude, part) for part in (first, last))
    moved = _mean(tracks.displacement_px, last) - _mean(tracks.displacement_px, first)
    return pd.DataFrame(
        {
            "column": np.arange(n),
            "region": _smallest_region(tracks.position_px, measured),
            "y_px": tracks.position_px[:, 0],
            "x_px": tracks.position_px[:, 1],
            "y_nm": tracks.position_px[:, 0] * step[0],
            "x_nm": tracks.position_px[:, 1] * step[1],
            "intensity": _mean(tracks.intensity, slice(None)),
            "amplitude_first": early,
            "amplitude_last": late,
            "msd_px2": msd,
            "msd_sigma_px2": msd_sigma,
            "msd_nm2": msd * step.prod(),
            "displacement_y_px": moved[:, 0],
            "displacement_x_px": moved[:, 1],
            "state": _states(tracks, first, last, early, late, moved),
            "n_frames": np.isfinite(tracks.amplitude).sum(0),
        }
    )


def columns_per_region(tracks: ColumnTracks, measured: Measurement) -> dict[str, np.ndarray]:
    """(t, regions): how many columns stand above a third of their first brightness, mean counts, mean square
    displacement against the first third of the frames; each with the ends of its 95 % interval, named as in OF_REGION.

    The interval of the number is from columns near that third, which noise may put on either side; that of the counts
    from shot and readout noise; that of the displacement from how the columns differ.
    """
    t, regions = measured.n_frames, measured.regions
    found = {name: np.full((t, len(regions.regions)), np.nan) for name in OF_REGION}
    if len(tracks.position_px) == 0:
        return found
    first, _ = _thirds(measured)
    start, brightness = _mean(tracks.displacement_px, first), _mean(tracks.amplitude, first)
    frames_in_start = np.isfinite(tracks.displacement_sigma_px[first]).sum(0)
    noise_in_start = _mean(tracks.displacement_sigma_px, first, power=2) / frames_in_start
    rows, columns = np.round(tracks.position_px).astype(int).T
    inside = [regions.mask(r)[rows, columns] for r in range(len(regions.regions))]
    for k in np.flatnonzero(measured.accepted.any(1)):
        values = tracks.in_frame(k)
        with np.errstate(invalid="ignore", divide="ignore"):
            noise = 2 * (values.displacement_sigma_px**2 + noise_in_start)
            if k in first:  # a frame is part of that mean
                noise -= 4 * values.displacement_sigma_px**2 / frames_in_start
            square = ((values.displacement_px - start) ** 2).sum(-1) - noise
            standing = scipy.special.ndtr((values.amplitude - LOST * brightness) / values.amplitude_sigma)
        for r, here in enumerate(inside):
            seen = here & np.isfinite(values.amplitude)
            if not (measured.accepted[k, r] and seen.any()):
                continue
            p = np.nan_to_num(standing[seen])
            n, doubt = (p > 0.5).sum(), Z95 * np.sqrt((p * (1 - p)).sum())
            _keep(found, "n_columns", k, r, n, max(n - doubt, 0), min(n + doubt, seen.sum()))
            mean, error = _mean_and_error(values.intensity[here], values.intensity_sigma[here])
            _keep(found, "column_intensity", k, r, mean, mean - error, mean + error)
            mean, error = _mean_and_error(square[here])
            _keep(found, "column_msd_px2", k, r, mean, mean - error, mean + error)
    return found


def msd_map(tracks: ColumnTracks, frame_shape: tuple[int, int], stride: int) -> np.ndarray:
    """(Y', X') mean square displacement [px²] of the columns around each cell; NaN where there are none."""
    shape = tuple(-(-n // stride) for n in frame_shape)
    value, weight = np.zeros(shape), np.zeros(shape)
    if len(tracks.position_px) == 0:
        return np.full(shape, np.nan, np.float32)
    msd, _ = tracks.msd()
    good = np.isfinite(msd)
    rows, columns = (tracks.position_px[good] / stride).astype(int).T
    np.add.at(value, (rows, columns), msd[good])
    np.add.at(weight, (rows, columns), 1.0)
    width = 0.6 * tracks.spacing_px / stride
    value, weight = (scipy.ndimage.gaussian_filter(v, width, truncate=3.0) for v in (value, weight))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weight > 1e-6 * weight.max(initial=0), value / weight, np.nan).astype(np.float32)


def _early_template(
    source: FrameSource, frame_from_reference: np.ndarray, measured: Measurement
) -> tuple[Template, float]:
    """The template as the first sixth of the frames show it, and how many they are."""
    first, _ = _thirds(measured)
    frames = [int(k) for k in first[: max(1, len(first) // 2)]]
    total = sum_template(source, torch.as_tensor(frame_from_reference), frames)
    early = replace(measured.template, total=total, crystal=measured.template.crystal & (total.count > 0))
    return early, float(len(frames))


def _with_further(places: np.ndarray, others: np.ndarray, apart_px: float) -> np.ndarray:
    """Places (n, 2), and those of the others that lie farther than `apart_px` from all of them."""
    if not len(others):
        return places
    distance, _ = scipy.spatial.cKDTree(places).query(others)
    return np.concatenate([places, others[distance > apart_px]])


def _solve_frame(tracks: ColumnTracks, k: int, normal, spread, right, factor: float, sizes: np.ndarray) -> None:
    scale = np.sqrt(np.maximum(np.einsum("nii->ni", normal), 1e-300))
    seen = (normal[:, 0, 0] >= 0.9 * sizes) & (np.einsum("nii->ni", normal).min(1) > 0)
    unit = normal / scale[:, :, None] / scale[:, None, :]
    unit[~seen] = np.eye(4)
    inverse = np.linalg.pinv(unit, rcond=1e-8, hermitian=True) / scale[:, :, None] / scale[:, None, :]
    solution = np.einsum("nij,nj->ni", inverse, right)
    covariance = np.einsum("nij,njk,nkl->nil", inverse, spread, inverse)
    amplitude, sigma = solution[:, 1], np.sqrt(np.maximum(covariance[:, 1, 1], 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        tracks.amplitude[k], tracks.amplitude_sigma[k] = (np.where(seen, v, np.nan) for v in (amplitude, sigma))
        place = factor * solution[:, 2:] / amplitude[:, None]
        error = factor * np.sqrt((covariance[:, 2, 2] + covariance[:, 3, 3]) / 2) / amplitude
    clear = seen & (amplitude > 3 * sigma) & (error < LARGEST_SIGMA_PX)
    if clear.any():
        tracks.displacement_px[k] = np.where(clear[:, None], place - np.median(place[clear], axis=0), np.nan)
        tracks.displacement_sigma_px[k] = np.where(clear, error, np.nan)


def _states(tracks: ColumnTracks, first, last, early, late, moved) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = late / early
        spread = _mean(tracks.amplitude_sigma, last, power=2) / np.isfinite(tracks.amplitude_sigma[last]).sum(0)
        error = np.sqrt(spread) / early
        typical = np.nanmedian(kept) if np.isfinite(kept).any() else np.nan
        lost = kept + 2 * error < LOST * typical
        noise = sum(
            _mean(tracks.displacement_sigma_px, part, power=2) / np.isfinite(tracks.displacement_sigma_px[part]).sum(0)
            for part in (first, last)
        )
        length = np.hypot(*moved.T)
        hopped = (length > HOPPED * tracks.spacing_px) & (length > CERTAIN * np.sqrt(2 * noise))
    state = np.where(lost, "lost", np.where(hopped, "hopped", "kept"))
    return np.where(np.isfinite(kept), state, "unseen").astype(object)


def _thirds(measured: Measurement) -> tuple[np.ndarray, np.ndarray]:
    """Frame numbers of the first and the last third of the valid frames."""
    frames = np.flatnonzero(measured.accepted.any(1))
    size = max(1, len(frames) // 3)
    return frames[:size], frames[-size:]


def _mean(values: np.ndarray, part, power: int = 1) -> np.ndarray:
    """Mean over the chosen frames (first axis) of what is known of (t, n, …), or of its power; float64."""
    total, known = np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    for frame in values[part] if isinstance(part, slice) else (values[k] for k in part):
        total += np.nan_to_num(frame.astype(float), posinf=0.0, neginf=0.0) ** power
        known += np.isfinite(frame)
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / known


def _mean_and_error(values: np.ndarray, sigma: np.ndarray | None = None) -> tuple[float, float]:
    """Mean of what is known of (n,), and half its 95 % interval; without σ from the scatter."""
    known = np.isfinite(values)
    n = known.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = values[known].sum() / n
        square = sigma[known] ** 2 if sigma is not None else (values[known] - mean) ** 2 * (n / (n - 1))
        return mean, Z95 * np.sqrt(square.sum()) / n


def _keep(found: dict[str, np.ndarray], name: str, frame: int, region: int, *values: float) -> None:
    for end, value in zip(("", "_lo95", "_hi95"), values, strict=True):
        found[f"{name}{end}"][frame, region] = value


def _smallest_region(position_px: np.ndarray, measured: Measurement) -> np.ndarray:
    regions, sizes = measured.regions, measured.regions.sizes_px()
    rows, columns = np.round(position_px).astype(int).T
    names = np.full(len(position_px), "", dtype=object)
    for r in np.argsort(-sizes):
        names[regions.mask(r)[rows, columns]] = regions.regions[r].name
    return names


def _nearest_column(places: np.ndarray, reach: float, shape: tuple[int, int]) -> np.ndarray:
    """(Y, X) number of the column that a pixel belongs to, that of columns for none; int32."""
    tree, labels = scipy.spatial.cKDTree(places), np.empty(shape, np.int32)
    pixels = np.stack([np.zeros(shape[1]), np.arange(shape[1])], 1)
    for row in range(shape[0]):
        pixels[:, 0] = row
        _, number = tree.query(pixels, distance_upper_bound=reach)
        labels[row] = number  # of none it is their count
    return labels


def _gradient(template: Template, axis: int) -> torch.Tensor:
    """Spline coefficients of the template's slope along an axis."""
    flat = torch.ones(1)
    kernels = (DIFFERENCE, flat) if axis == 0 else (flat, DIFFERENCE)
    return filter_separable(template.mean_coefficients - template.base_coefficients, *kernels)


def _blur_factor(template: Template, filter_px: float) -> float:
    """What a displacement is to be multiplied with, because the template is a frame seen through the matched filter."""
    structure = sampled(template.mean_coefficients - template.base_coefficients)[0].cpu().numpy()
    structure = np.where(template.crystal[0].cpu().numpy(), structure, 0.0)
    power = np.abs(scipy.fft.rfft2(structure.astype(np.float32))) ** 2
    times = np.full(power.shape, 2, np.int8)  # that a frequency stands in the whole spectrum
    times[:, 0] = 1
    if structure.shape[1] % 2 == 0:
        times[:, -1] = 1
    highest = np.argpartition(power.ravel(), -SPOTS)[-SPOTS:]
    twentieth = np.sort(np.repeat(power.ravel()[highest], times.ravel()[highest]))[-SPOTS]
    fy, fx = np.fft.fftfreq(structure.shape[0]), np.fft.rfftfreq(structure.shape[1])
    strong = power > 0.01 * twentieth
    rows, columns = np.nonzero(strong)
    q2 = (2 * np.pi) ** 2 * (fy[rows] ** 2 + fx[columns] ** 2)
    passed = np.exp(-0.5 * filter_px**2 * q2)
    p = power[strong].astype(float) * times[strong]
    p, q2, passed = (values[passed > 0.3] for values in (p, q2, passed))
    if not len(p):
        return 1.0
    amplitude = (p / passed).sum() / p.sum()
    slope = (p * q2 / passed).sum() / (p * q2).sum()
    return float(amplitude / slope)


def _peak_offset(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(n, 2) from pixel maxima to those of the parabola through three pixels along each axis."""
    offsets = []
    for dy, dx in ((1, 0), (0, 1)):
        before, here, after = image[rows - dy, columns - dx], image[rows, columns], image[rows + dy, columns + dx]
        curvature = before - 2 * here + after
        offsets.append(np.where(curvature < 0, 0.5 * (before - after) / np.where(curvature < 0, curvature, -1), 0.0))
    return np.clip(np.stack(offsets, 1), -0.5, 0.5)
