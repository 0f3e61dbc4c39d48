"""Damage of all series of a session → samples.csv and comparison.csv."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiffuser.damage.comparison import CONDITION, Sample, compare_samples, samples_table
from atomdiffuser.errors import StoreError
from atomdiffuser.io.status import read_status
from atomdiffuser.io.store import read_attributes
from atomdiffuser.io.tables import read_table, write_table_twice

if TYPE_CHECKING:
    from atomdiffuser.io.discovery import SeriesEntry


def compare(results: Path, entries: Sequence[SeriesEntry], samples: Path, comparison: Path) -> int:
    """Write both tables, each as CSV and as Parquet; returns how many series are compared.

    Series that failed or were skipped are left out.
    """
    found = [s for entry in entries if entry.state == "series" and (s := _sample(Path(results), entry)) is not None]
    table = samples_table(found)
    described = {c: (f"{c.removeprefix(CONDITION)}, from session.yaml", "") for c in table if c.startswith(CONDITION)}
    write_table_twice(table, Path(samples), "samples", columns=described)
    write_table_twice(compare_samples(table), Path(comparison), "comparison")
    return len(found)


def _sample(results: Path, entry: SeriesEntry) -> Sample | None:
    folder = results / entry.series_id
    try:
        if (folder / "status.json").is_file() and read_status(folder / "status.json").state == "failed":
            return None
        critical = read_table(folder / "critical_fluence.csv")
        exposure = read_table(folder / "exposure.csv")
        attributes = read_attributes(folder / "frames.ome.zarr")
    except StoreError:
        return None
    energy = (attributes.get("acquisition") or {}).get("beam_energy_kV")
    conditions = attributes.get("conditions")
    return Sample(
        series=entry.series_id,
        name=entry.name,
        critical_fluence=critical,
        conditions=conditions if isinstance(conditions, dict) else {},
        flux_e_per_A2_s=float(exposure["flux_e_per_A2_s"].iloc[0]) if len(exposure) else math.nan,
        beam_energy_kV=float(energy) if energy else math.nan,
    )
