"""From frames, trajectory and maps to what each region shows in each frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from atomdiffuser.config import DamageSettings, DecaySettings
from atomdiffuser.damage.atom_sums import strips
from atomdiffuser.damage.balance import Balanced, as_they_are, balance
from atomdiffuser.damage.mixture import consistent_factors
from atomdiffuser.damage.observables import OF_REGIONS, Observables, observe, sum_frame, unsure_lattice
from atomdiffuser.damage.regions import RegionSet, block_size_px
from atomdiffuser.damage.signals import Z95
from atomdiffuser.damage.template import Template, TemplateOnFrame, frame_weight, make_template, typical
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.local_regression import estimate_decay_maps, full_resolution
from atomdiffuser.estimation.prepare import PreparedFrames
from atomdiffuser.estimation.template import TemplateSum, aligned_part, empty_sum

FRAMES_AT_ONCE_PX = 2**20
WITNESSES = {"intensity": "signal_ratio", "contrast": "lattice", "crystallinity": "order"}
"""Each witness and the signal that it is fitted through."""


@dataclass(frozen=True)
class Measurement:
    """What was measured of a series, region by region.

    Attributes
    ----------
    regions
        Their atoms are cut into blocks.
    sums
        By name as in `observables.OF_REGIONS`, each (t, atoms), weighed as `balance.balance` says; NaN where a frame is
        not valid.
    completion
        Factors (t, regions) of "lattice" and "signal_ratio" from what a frame shows of a region to all of it, which are
        in `values`. `completion_sigma` is the relative 1 σ that is left in the course of the region, shared by its
        frames.
    values
        "signal_ratio", "lattice" and "order", each (t, regions), and their 1 σ from shot and readout noise under
        "<name>_sigma"; further "signal" [counts], "n_px" and "coverage".
    accepted
        (t, regions): the frame is valid and sees enough of the region.
    template
        The sample as all frames together show it.
    """

    regions: RegionSet
    sums: dict[str, np.ndarray]
    completion: dict[str, np.ndarray]
    completion_sigma: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    accepted: np.ndarray
    reference_frame: int
    block_px: int
    template: Template

    @property
    def n_frames(self) -> int:
        return len(self.accepted)

    def table(self) -> pd.DataFrame:
        """A row per region and frame, ratios to the reference frame included (columns as in damage.parquet)."""
        regions, t = self.regions.regions, self.n_frames
        rows = {
            "region": np.tile([r.name for r in regions], t),
            "region_id": np.tile([r.region_id for r in regions], t),
            "frame": np.repeat(np.arange(t), len(regions)),
        }
        for name in (
            "signal",
            "signal_ratio",
            "signal_ratio_sigma",
            "lattice",
            "lattice_sigma",
            "order",
            "order_sigma",
        ):
            rows[name] = self.values[name]
        rows["n_px"] = np.nan_to_num(self.values["n_px"]).astype(np.int64)
        rows |= {"coverage": self.values["coverage"], "valid": self.accepted}
        for witness, name in WITNESSES.items():
            ratio, sigma = self.ratios(name)
            rows |= {
                witness: ratio,
                f"{witness}_sigma": sigma,
                f"{witness}_lo95": ratio - Z95 * sigma,
                f"{witness}_hi95": ratio + Z95 * sigma,
            }
        return pd.DataFrame({name: np.asarray(column).reshape(-1) for name, column in rows.items()})

    def ratios(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(t, regions) ratios of a signal to the reference frame and their 1 σ, with the noise of both frames."""
        value, sigma, reference = self.values[name], self.values[f"{name}_sigma"], self.reference_frame
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = value / value[reference]
            relative = np.hypot(sigma / value, (sigma / value)[reference])
        spread = np.abs(ratio) * relative
        spread[reference] = 0.0
        ratio = np.where(self.accepted & (value[reference] > 0), ratio, np.nan)
        return ratio, np.where(np.isfinite(ratio), spread, np.nan)


class Onlooker(Protocol):
    """Tells something else from the frames that `measure_regions` comes to."""

    def begin(self, template: Template, regions: RegionSet) -> None:
        """Called once before the first frame, with the regions cut into blocks."""

    def look(self, index: int, seen: TemplateOnFrame) -> None:
        """Called with what the template shows of raw frame `index`."""


def measure_regions(
    source: FrameSource,
    frame_from_reference: np.ndarray,
    valid: np.ndarray,
    reference_frame: int,
    regions: RegionSet,
    settings: DamageSettings,
    progress: Callable[[int, int], None] | None = None,
    maps_of: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
    onlooker: Onlooker | None = None,
) -> Measurement:
    """Measure every region in every frame, on raw pixels.

    Parameters
    ----------
    frame_from_reference, valid
        (t, 3, 3) and (t,): the trajectory.
    reference_frame
        Frame whose ratios are 1.
    maps_of
        Gives the maps of intensity and contrast of a frame, (Y, X) each, on the reference grid; by default they are
        estimated here.
    onlooker
        Is shown every valid frame too.
    """
    affines = torch.as_tensor(frame_from_reference)
    usable = [int(k) for k in np.flatnonzero(valid)]
    done, total = 0, 2 * len(usable)

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    given = maps_of or _estimated_maps(source, affines, reference_frame, usable)
    template = _template(source, affines, reference_frame, usable, given, advance)
    block = block_size_px(source.scales.period_px, source.shape)
    regions = regions.with_blocks(block)
    n_frames, n_atoms = len(valid), regions.membership.shape[1]
    sums: dict[str, np.ndarray] = {}
    further = {}
    if onlooker is not None:
        onlooker.begin(template, regions)
        further["look"] = onlooker.look
    for k in source.each(usable):
        maps = tuple(_filled(v, source) for v in given(k))
        found = sum_frame(source, k, affines[k], maps, template, regions, **further)
        for name, values in found.items():
            if name not in sums:
                sums[name] = np.full((n_frames, n_atoms), np.nan)
            sums[name][k] = values
        advance()
    weights = np.array([template.weights[k] for k in usable])
    if usable:
        rows = _all_or_some(usable, n_frames)
        field = {name: values.sum(1)[rows] for name, values in sums.items()}
        for name, factor in consistent_factors(field, weights).items():
            sums[name][rows] *= factor
    weighed = balance(sums, regions, block) if usable else as_they_are(n_frames, len(regions.regions))
    for name, weight in weighed.weights.items():
        sums[name] *= weight
    sums = {name: sums[name] for name in OF_REGIONS if usable}
    values = _values(sums, weighed, regions, usable, weights)
    values["order"], values["order_sigma"] = _order(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        covered = np.nan_to_num(values["n_px"]) / regions.sizes_px()
    accepted = np.asarray(valid, bool)[:, None] & (covered >= settings.min_coverage)
    values["coverage"] = np.minimum(np.nan_to_num(covered), 1.0)
    return Measurement(
        regions, sums, weighed.completion, weighed.sigma, values, accepted, reference_frame, block, template
    )


def _all_or_some(usable: list[int], n_frames: int) -> list[int] | slice:
    """The frames in use as an index, which gives a view where that is all of them, not a copy."""
    return usable if len(usable) < n_frames else slice(None)


def _template(
    source: FrameSource, affines: torch.Tensor, reference_frame: int, usable: list[int], given, advance
) -> Template:
    """The weighted sum of the frames and of their maps, where each frame's own pixels are seen."""
    mixture = torch.zeros(2, 1, *source.shape, dtype=torch.float64, device=source.device)
    total, weights = empty_sum(source), {}
    for k in source.each(usable):
        weights[k] = _add_frame(total, mixture, given(k), aligned_part(source, k, affines[k]), source)
        advance()
    base = source.prepared([reference_frame]).base
    return make_template(total, *mixture, weights, base, source.scales)


def _add_frame(total: TemplateSum, mixture: torch.Tensor, maps, part: TemplateSum, source: FrameSource) -> float:
    """Count a frame and its maps in; its weight."""
    weight = frame_weight(maps[1])
    total.add(part, weight)
    for mixed, values in zip(mixture, maps, strict=True):
        filled = _filled(values, source)
        for rows in strips(filled):
            mixed[:, rows].add_(part.count[:, rows] * filled[:, rows], alpha=weight)
    return weight


def _values(
    sums: dict[str, np.ndarray], weighed: Balanced, regions: RegionSet, usable: list[int], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Observables (t, regions) of whole regions; NaN in frames that are not usable."""
    shape = next(iter(weighed.completion.values())).shape
    values = {name: np.full(shape, np.nan) for name in Observables.__dataclass_fields__}
    if not usable:
        return values
    sums = {name: v[_all_or_some(usable, shape[0])] for name, v in sums.items()}
    seen = observe(sums, regions.membership)
    for name, column in values.items():
        column[usable] = getattr(seen, name)
    unsure = np.minimum(unsure_lattice(sums, regions.membership), 0.5)
    weighed.sigma["signal_ratio"][usable] = np.hypot(weighed.sigma["signal_ratio"][usable], unsure)
    # A frame's noise is also in the template of all others, with its weight: they move the other way together.
    shared = 1 + (weights / weights.sum())[:, None]
    for name, factor in weighed.completion.items():
        values[name] *= factor
        values[f"{name}_sigma"] *= factor
        values[f"{name}_sigma"][usable] *= shared
    return values


def measure_damage(
    source: FrameSource,
    frame_from_reference: np.ndarray,
    valid: np.ndarray,
    reference_frame: int,
    regions: RegionSet,
    settings: DamageSettings,
    progress: Callable[[int, int], None] | None = None,
    maps_of: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
) -> pd.DataFrame:
    """The table of `measure_regions`: a row per region and frame."""
    return measure_regions(
        source, frame_from_reference, valid, reference_frame, regions, settings, progress, maps_of
    ).table()


def _order(values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lattice over signal, and its 1 σ."""
    with np.errstate(divide="ignore", invalid="ignore"):
        order = values["lattice"] / values["signal_ratio"]
        sigma = np.hypot(values["lattice_sigma"], order * values["signal_ratio_sigma"]) / values["signal_ratio"]
    good = values["signal_ratio"] > 0
    return np.where(good, order, np.nan), np.where(good, sigma, np.nan)


def _estimated_maps(
    source: FrameSource, affines: torch.Tensor, origin: int, usable: list[int]
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Maps estimated here, some frames at a time, each once; they are kept as coarse as the decay stage stores them."""
    stride, kept = DecaySettings.map_stride, {}
    together = max(1, FRAMES_AT_ONCE_PX // (source.shape[0] * source.shape[1]))

    def give(index: int) -> tuple[np.ndarray, np.ndarray]:
        if index not in kept:
            at = usable.index(index)
            batch = usable[at : at + together]
            reference = source.prepared([origin])
            maps = estimate_decay_maps(
                PreparedFrames.join([reference] * len(batch)), source.prepared(batch), affines[batch],
                noise=source.noise, scales=source.scales, stride=stride,
            )  # fmt: skip
            for k, *pair in zip(batch, maps.intensity.cpu(), maps.contrast.cpu(), strict=True):
                kept[k] = pair
        full = lambda image: full_resolution(image[None], stride, source.shape)[0].numpy()
        return full(kept[index][0]), full(kept[index][1])

    return give


def _filled(values: np.ndarray, source: FrameSource) -> torch.Tensor:
    """A map (1, Y, X) without gaps: where it is unknown, what is typical of the frame."""
    known = np.isfinite(values)
    full = np.array(values, np.float32)
    if not known.all():
        full[~known] = typical(values)
    return torch.from_numpy(full).to(source.device)[None]
