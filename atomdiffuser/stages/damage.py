"""frames.ome.zarr, trajectory.parquet and decay.zarr → damage.parquet, damage.csv and critical_fluence.csv."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from atomdiffuser.config import DamageSettings
from atomdiffuser.damage.analysis import fit_critical_fluence, measure_damage
from atomdiffuser.damage.regions import RegionSet, grid_regions
from atomdiffuser.io.map_store import DecayMaps, read_maps
from atomdiffuser.io.tables import write_table
from atomdiffuser.stages._sources import describe_estimation, fluence_axis, open_source, open_trajectory


def damage(
    frames: Path,
    trajectory: Path,
    decay: Path,
    table: Path,
    critical_fluence: Path,
    settings: DamageSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the damage of each region (`table`, and the same as .csv beside it) and its critical fluence."""
    series, source = open_source(frames, "cpu", trajectory)
    track, affines, valid, origin = open_trajectory(trajectory)
    maps = read_maps(decay)
    regions = grid_regions(series.frame_shape, (settings.grid[0], settings.grid[1]))
    contrast_map = lambda k: maps.at_full_resolution("contrast", k, series.frame_shape)
    found = measure_damage(source, affines, valid, origin, regions, settings, progress, contrast_map)
    found.insert(3, "time_s", track["time_s"].to_numpy()[found["frame"]])
    found.insert(4, "fluence_e_per_A2", track["fluence_e_per_A2"].to_numpy()[found["frame"]])
    found["area_below_threshold"] = _area_below(maps, regions, settings.area_threshold).reshape(-1)
    axis, unit = fluence_axis(track)
    per_row = axis.iloc[found["frame"]].set_axis(found.index)
    fits = fit_critical_fluence(found, per_row, unit, regions, settings)
    metadata = {
        "settings": dataclasses.asdict(settings),
        "reference_frame": origin,
        "regions": [{**dataclasses.asdict(r), "region": r.name} for r in regions.regions],
        "estimation": describe_estimation(source),
        "dark_level": {
            "value": source.dark_level,
            "source": series.acquisition.sources.get("dark_level", "file")
            if series.acquisition.dark_level is not None
            else "assumed",
        },
    }
    write_table(found, table, "damage", **metadata)
    write_table(found, table.with_suffix(".csv"), "damage", **metadata)
    write_table(fits, critical_fluence, "critical_fluence", **metadata)


def _area_below(maps: DecayMaps, regions: RegionSet, threshold: float) -> np.ndarray:
    """(t, regions) share of each region's mapped area where the contrast is below `threshold`."""
    half = maps.stride // 2
    atoms = regions.atoms[half :: maps.stride, half :: maps.stride]
    share = np.full((maps.n_frames, len(regions.regions)), np.nan)
    for k in range(maps.n_frames):
        contrast = np.asarray(maps.contrast[k])[: atoms.shape[0], : atoms.shape[1]]
        known = np.isfinite(contrast) & (atoms >= 0)
        count = lambda chosen: regions.membership @ np.bincount(atoms[chosen], minlength=regions.membership.shape[1])
        with np.errstate(invalid="ignore"):
            share[k] = count(known & (contrast < threshold)) / count(known)
    return share
