"""Where a page's numbers come from: raw file, hashes, versions, settings, and the files that hold the results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from atomdiffuser.io.status import Status
from atomdiffuser.report.formatting import integer, known, number
from atomdiffuser.report.results import SeriesResults

ESTIMATION_LABELS = {
    "matched_filter_px": "matched filter, σ (px)",
    "base_px": "width of the local mean (px)",
    "lattice_period_px": "lattice period (px)",
    "noise_readout_counts2": "readout noise (counts²)",
    "noise_per_count": "noise variance per count",
}
SHOWN_ELSEWHERE = ("kind", "name", "version", "series", "fingerprint")
TABLES = {
    "damage.csv": "regions against fluence",
    "critical_fluence.csv": "critical fluence of each region and witness",
    "kinetics.csv": "every curve that was tried",
    "spots.parquet": "Fourier spots against fluence",
    "spot_fluence.csv": "fading of each shell of Fourier spots",
    "columns.parquet": "atomic columns",
    "exposure.csv": "fluence, flux and gain of each frame",
    "trajectory.parquet": "drift and quality of each frame",
    "pairs.parquet": "drift between frames",
    "damage.parquet": "the same as damage.csv, with units in the file",
}


def provenance_rows(results: SeriesResults, status: Status, command: str | None) -> list[tuple[str, str]]:
    """Label and text of everything that says where the numbers come from."""
    rows = [("series", status.series), ("raw file", status.source)]
    rows.append(("content hash", status.fingerprint or str(results.attributes.get("fingerprint", ""))))
    for key, value in results.attributes.items():
        if key == "sources" and isinstance(value, list) and value and not status.source:
            rows.append(("raw files", f"{value[0]} and {integer(len(value) - 1)} more" if len(value) > 1 else value[0]))
        if isinstance(value, str | int | float) and key not in SHOWN_ELSEWHERE:
            rows.append((key.replace("_", " "), str(value)))
    estimation = results.damage.attrs.get("estimation")
    if isinstance(estimation, dict):
        for key, value in estimation.items():
            if key != "torch" and isinstance(value, str | int | float):  # torch is among the versions
                label = ESTIMATION_LABELS.get(key, key.replace("_", " "))
                rows.append((label, number(value, 4) if known(value) else str(value)))
    weights = results.tables["pairs"].attrs.get("weights") or results.maps.attributes.get("weights")
    rows += [
        ("settings hash", status.config_hash),
        ("network weights", str(weights) if weights else "none: statistical estimation only"),
        ("reference frame", integer(results.facts.reference_frame)),
        ("drift measured on", results.facts.shared_drift_from),
        ("command", command or ""),
    ]
    seen: set[tuple[str, str]] = set()
    return [r for r in rows if r[1] and not (r in seen or seen.add(r))]


def conditions_of(results: SeriesResults) -> dict[str, Any]:
    """What session.yaml says of the specimen: temperature, coating and the like."""
    overrides = results.attributes.get("overrides")
    for place in (results.attributes, overrides if isinstance(overrides, dict) else {}):
        if isinstance(conditions := place.get("conditions"), dict) and conditions:
            return conditions
    return {}


def store_rows(folder: Path, page: Path) -> list[dict[str, str]]:
    """Links to the results beside the page, and the lines that open the stores in HyperSpy and napari."""
    relative = lambda name: os.path.relpath(folder / name, page.parent).replace(os.sep, "/")
    rows = []
    for stem, what in (("aligned", "drift-corrected series"), ("frames", "frames as recorded")):
        if (folder / f"{stem}.ome.zarr").exists():
            zspy = f"{stem}.zspy" if (folder / f"{stem}.zspy").exists() else f"{stem}.ome.zarr"
            rows.append(
                {
                    "href": relative(f"{stem}.ome.zarr"),
                    "what": what,
                    "hyperspy": f'hs.load("{relative(zspy)}", lazy=True)',
                    "pandas": "",
                    "napari": f"napari --plugin napari-ome-zarr {relative(f'{stem}.ome.zarr')}",
                }
            )
    for store, group, what in (
        ("decay.zarr", "contrast", "decay maps of each frame with σ and coverage"),
        ("damage_maps.zarr", "rate", "maps of rate, critical fluence, onset and regions"),
    ):
        if (folder / store).exists():
            napari = f"napari --plugin napari-ome-zarr {relative(f'{store}/{group}')}"
            rows.append({"href": relative(store), "what": what, "hyperspy": "", "napari": napari, "pandas": ""})
    for file, what in TABLES.items():
        if (folder / file).exists():
            reader = "read_parquet" if file.endswith("parquet") else "read_csv"
            line = f'pandas.{reader}("{relative(file)}")'
            rows.append({"href": relative(file), "what": what, "hyperspy": "", "napari": "", "pandas": line})
    return rows
