"""frames.ome.zarr, trajectory.parquet and decay.zarr → all tables and maps of damage of one series."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomdiffuser.config import DamageSettings
from atomdiffuser.damage.analysis import measure_regions
from atomdiffuser.damage.columns import OF_REGION, column_table, columns_per_region, msd_map, track_columns
from atomdiffuser.damage.columns import TABLE as COLUMN_TABLE
from atomdiffuser.damage.dark_level import find_dark_level, with_dark_level
from atomdiffuser.damage.exposure import Exposure, describe_exposure, region_fluence
from atomdiffuser.damage.faded_area import faded_area
from atomdiffuser.damage.fitting import Fits, Scales, fit_regions
from atomdiffuser.damage.gain import Gain
from atomdiffuser.damage.maps import correlation_length_px, edge_against_interior, map_damage
from atomdiffuser.damage.region_files import session_regions
from atomdiffuser.damage.regions import RegionMask, RegionSet, grid_masks, join_regions
from atomdiffuser.damage.segmentation import Segmentation, automatic_masks, segment
from atomdiffuser.damage.spots import SpotFits, spot_tables
from atomdiffuser.io.map_store import DecayMaps, read_maps, write_still_maps
from atomdiffuser.io.tables import write_table_twice
from atomdiffuser.series import FrameSeries
from atomdiffuser.stages._sources import describe_estimation, open_source, open_trajectory


def damage(
    frames: Path,
    trajectory: Path,
    decay: Path,
    table: Path,
    critical_fluence: Path,
    settings: DamageSettings,
    *,
    options: Mapping[str, Any] | None = None,
    session: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write what the beam did to one series; further tables and maps go beside `critical_fluence`.

    Parameters
    ----------
    table
        damage.parquet. Every table is written as Parquet and as CSV with a JSON file that describes its columns.
    options
        Values of session.yaml: `regions`, `probe_size_nm`, `probe_current_sigma_percent`.
    session
        The session folder, which region files lie in.
    """
    options, folder = dict(options or {}), Path(critical_fluence).parent
    series, source = open_source(frames, "cpu", "damage")
    track, affines, valid, origin = open_trajectory(trajectory)
    maps = read_maps(decay)
    dark = find_dark_level(source, series.acquisition, origin, search=settings.dark_level == "auto")
    source = with_dark_level(source, dark, series.acquisition.gain_e)
    found = segment(source, source.prepared([origin]))
    steps = _Steps(progress, len(np.flatnonzero(valid)) * (2 + (settings.columns == "auto")))
    spot_fits = SpotFits(source, settings.spot_shells)
    measured = measure_regions(
        source, affines, valid, origin, _regions(series, found, settings, options, session), settings,
        lambda done, total: steps.add(), _given_maps(maps, series),
        spot_fits,
    )  # fmt: skip
    exposure = _exposure(series, settings, options)
    fluence = region_fluence(exposure, affines, valid, measured.regions)
    x, unit = _axis(fluence, track)
    scales = Scales(source.scales.filter_px, source.scales.period_px, track["displacement_sigma_px"].to_numpy(float))
    fits = fit_regions(measured, x, unit, settings, scales, fluence_systematic_percent=exposure.current_sigma_percent)
    pixel = series.acquisition.pixel_size_nm
    spots = spot_tables(spot_fits.amplitudes(measured), measured, x, fluence, unit, pixel)
    tracks = track_columns(source, affines, measured, steps.add) if settings.columns == "auto" else None
    metadata = {
        "settings": dataclasses.asdict(settings),
        "reference_frame": origin,
        "regions": _describe_regions(measured.regions, settings),
        "estimation": describe_estimation(source),
        "dark_level": dataclasses.asdict(dark),
    }
    write = lambda frame, path, kind: write_table_twice(frame, path, kind, **metadata)
    per_frame = _damage_table(measured, track, fluence, maps, settings, tracks)
    write(per_frame, table, "damage")
    write(fits.critical_fluence, Path(critical_fluence), "critical_fluence")
    write(fits.kinetics, folder / "kinetics.csv", "kinetics")
    write(spots[0], folder / "spots.parquet", "spots")
    write(spots[1], folder / "spot_fluence.csv", "spot_fluence")
    columns = column_table(tracks, measured, pixel) if tracks is not None else pd.DataFrame(columns=list(COLUMN_TABLE))
    write(columns, folder / "columns.parquet", "columns")
    _write_exposure(folder / "exposure.csv", exposure, fits.gain, x[:, 0], options, metadata)
    _write_maps(folder / "damage_maps.zarr", maps, series, valid, x, unit, origin, settings, fits, tracks, found)


def _regions(
    series: FrameSeries, found: Segmentation, settings: DamageSettings, options: Mapping[str, Any], session: Path | None
) -> RegionSet:
    shape, pixel = series.frame_shape, series.acquisition.pixel_size_nm
    masks: list[RegionMask] = grid_masks(shape, (settings.grid[0], settings.grid[1]))
    if settings.segmentation == "auto":
        masks += automatic_masks(found, settings.edge_band_nm, pixel)
    given = options.get("regions") or ()
    masks += session_regions(given, Path(session or "."), shape, pixel)
    return join_regions(shape, masks)


def _given_maps(maps: DecayMaps, series: FrameSeries) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    full = lambda name, index: maps.at_full_resolution(name, index, series.frame_shape)
    return lambda index: (full("intensity", index), full("contrast", index))


def _exposure(series: FrameSeries, settings: DamageSettings, options: Mapping[str, Any]) -> Exposure:
    given = options.get("probe_current_sigma_percent")
    return describe_exposure(
        series.acquisition, series.n_frames, series.frame_shape, series.times_s,
        count_gaps=settings.gaps == "counted", probe_size_nm=options.get("probe_size_nm"),
        current_sigma_percent=(float(given), "session.yaml") if given is not None
        else (settings.current_sigma_percent, "assumed"),
    )  # fmt: skip


def _axis(fluence: np.ndarray, track: pd.DataFrame) -> tuple[np.ndarray, str]:
    """(t, regions) what decay is fitted against, and its unit: fluence, else time, else the frame's number."""
    if np.isfinite(fluence).all():
        return fluence, "e_per_A2"
    column, unit = (track["time_s"], "s") if track["time_s"].notna().all() else (track["frame"], "frame")
    return np.repeat(column.to_numpy(float)[:, None], fluence.shape[1], 1), unit


def _damage_table(measured, track, fluence, maps, settings, tracks) -> pd.DataFrame:
    table = measured.table()
    table.insert(3, "time_s", track["time_s"].to_numpy()[table["frame"]])
    table.insert(4, "fluence_e_per_A2", fluence.reshape(-1))
    found = faded_area(maps, measured.regions, settings.area_threshold)
    found |= (
        columns_per_region(tracks, measured) if tracks is not None else dict.fromkeys(OF_REGION, np.full(1, np.nan))
    )
    return table.assign(**{name: np.broadcast_to(v.reshape(-1), len(table)) for name, v in found.items()})


def _describe_regions(regions: RegionSet, settings: DamageSettings) -> list[dict[str, Any]]:
    sizes = regions.sizes_px()
    return [
        {
            "region": r.name, "region_id": r.region_id, "kind": r.kind, "n_px": int(n),
            "enough_px": bool(n >= settings.min_region_px), "bounds_px": list(r.bounds_px), "outline_px": r.outline_px,
        }
        for r, n in zip(regions.regions, sizes, strict=True)
    ]  # fmt: skip


def _write_exposure(path: Path, exposure: Exposure, gain: Gain, x: np.ndarray, options, metadata) -> None:
    table = exposure.table.assign(gain=gain.factor, gain_sigma=gain.sigma)
    ambiguity = gain.ambiguity_percent(x)
    text = (
        f"the beam fluctuated by {100 * gain.scatter:.2g} % (1 σ) from frame to frame; its slow part, up to "
        f"{2 * ambiguity:.2g} % over the series, cannot be told from uniform loss of mass: contrast over intensity can"
        if gain.scatter > 0
        else "no fluctuation of the beam beyond noise"
    )
    write_table_twice(
        table, path, "exposure", **metadata, limit=exposure.limit, probe_size_nm=options.get("probe_size_nm"),
        current_sigma_percent=exposure.current_sigma_percent, current_sigma_source=exposure.current_sigma_source,
        gain_scatter_percent=100 * gain.scatter, gain_text=text,
    )  # fmt: skip


def _write_maps(path, maps, series, valid, x, unit, origin, settings, fits: Fits, tracks, found: Segmentation) -> None:
    made = map_damage(maps, valid, x[:, 0], origin, min_span_of_critical=settings.min_span_of_critical)
    half = maps.stride // 2
    images = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    shape = made.rate.shape
    images["column_msd"] = (
        msd_map(tracks, series.frame_shape, maps.stride) if tracks is not None else np.full(shape, np.nan, np.float32)
    )
    labels = np.full(shape, -1.0, np.float32)
    coarse = found.labels()[half :: maps.stride, half :: maps.stride]
    labels[: coarse.shape[0], : coarse.shape[1]] = coarse
    images["labels"] = labels
    length = correlation_length_px(made.rate, maps.stride)
    pixel = series.acquisition.pixel_size_nm
    write_still_maps(
        path,
        images,
        stride=maps.stride,
        pixel_size_nm=pixel,
        attributes={
            "settings": dataclasses.asdict(settings),
            "reference_frame": origin,
            "unit": unit,
            "label_names": {"0": "crystal", "1": "amorphous", "2": "vacuum"},
            "correlation_length_px": length,
            "correlation_length_nm": length * float(np.mean(pixel)) if pixel else None,
            "edge_interior": edge_against_interior(fits.critical_fluence, settings.edge_band_nm),
        },
    )


class _Steps:
    """Counts towards a progress callback."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self.progress, self.total, self.done = progress, max(total, 1), 0

    def add(self) -> None:
        self.done = min(self.done + 1, self.total)
        if self.progress:
            self.progress(self.done, self.total)
