"""The results folder of one series, opened for reporting: tables in memory, frames and maps lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomdiffuser.io.map_store import DecayMaps, read_maps
from atomdiffuser.io.replacing import replacing_file
from atomdiffuser.io.store import read_attributes, read_frames
from atomdiffuser.io.tables import read_table
from atomdiffuser.report.damage_maps import DamageMaps, open_damage_maps
from atomdiffuser.report.facts import SeriesFacts, gather_facts
from atomdiffuser.series import FrameSeries

AFFINE_COLUMNS = ["a_yy", "a_yx", "a_y", "a_xy", "a_xx", "a_x"]
TABLE_FILES = {
    "pairs": "pairs.parquet",
    "trajectory": "trajectory.parquet",
    "damage": "damage.parquet",
    "critical_fluence": "critical_fluence.csv",
}
"""What every series has."""

FURTHER_FILES = {
    "kinetics": "kinetics.csv",
    "spots": "spots.parquet",
    "spot_fluence": "spot_fluence.csv",
    "columns": "columns.parquet",
    "exposure": "exposure.csv",
}
"""What results of an older version do not have; the page says where that leaves a gap."""


@dataclass(frozen=True)
class SeriesResults:
    """Everything a series page is made from."""

    folder: Path
    series: FrameSeries
    attributes: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    maps: DecayMaps
    facts: SeriesFacts
    further: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    damage_maps: DamageMaps | None = None

    def table(self, kind: str) -> pd.DataFrame | None:
        """One of FURTHER_FILES; None when these results do not have it or it has no rows."""
        found = self.further.get(kind)
        return found if found is not None and len(found) else None

    @property
    def pairs(self) -> pd.DataFrame:
        return self.tables["pairs"]

    @property
    def trajectory(self) -> pd.DataFrame:
        return self.tables["trajectory"]

    @property
    def damage(self) -> pd.DataFrame:
        return self.tables["damage"]

    @property
    def critical(self) -> pd.DataFrame:
        return self.tables["critical_fluence"]

    def frame_from_reference(self, index: int) -> np.ndarray:
        """(3, 3) affine of one frame; NaN where the frame is not valid."""
        numbers = self.trajectory.iloc[index][AFFINE_COLUMNS].to_numpy(float)
        return np.vstack([numbers.reshape(2, 3), [0.0, 0.0, 1.0]])


def open_results(folder: Path) -> SeriesResults:
    """Open results/<series>/. Raises StoreError naming the stage to run when something is missing."""
    tables = read_tables(folder)
    return SeriesResults(
        folder=folder,
        series=read_frames(folder / "frames.ome.zarr", dask=False),
        attributes=read_attributes(folder / "frames.ome.zarr"),
        tables=tables,
        maps=read_maps(folder / "decay.zarr"),
        facts=gather_facts(**{k.replace("critical_fluence", "critical"): v for k, v in tables.items()}),
        further={k: read_table(folder / f) for k, f in FURTHER_FILES.items() if (folder / f).is_file()},
        damage_maps=open_damage_maps(folder / "damage_maps.zarr"),
    )


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The four tables of a series by kind."""
    return {kind: read_table(folder / file) for kind, file in TABLE_FILES.items()}


def write_page(path: Path, text: str) -> None:
    """Write a page; readers see either the old or the new one, never half of one."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
