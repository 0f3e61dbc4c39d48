"""`atomdiffuser info`: what a file is, in a few lines or as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import rich_click as click

from atomdiffuser.errors import AtomDiffuserError


def print_info(path: Path, *, as_json: bool) -> None:
    """Print what `describe` finds."""
    facts = describe(path)
    click.echo(json.dumps(facts, indent=1, ensure_ascii=False, default=str) if as_json else as_text(facts))


def describe(path: Path) -> dict[str, Any]:
    """Kind and contents of a raw microscope file, or of one of our own stores and tables.

    Raises ReadError for what is neither.
    """
    path = path.parent if path.name == "zarr.json" else path
    if (path / "zarr.json").is_file():
        from atomdiffuser.io.store import read_attributes

        return {"file": str(path), **_own("store", read_attributes(path))}
    if path.suffix in (".parquet", ".csv"):
        from atomdiffuser.io.tables import read_table

        table = read_table(path)
        return {"file": str(path), **_own("table", table.attrs), "rows": len(table), "columns": list(table.columns)}
    from atomdiffuser.io.readers import inspect

    signals = []
    for signal in inspect(path):
        facts = {k: v for k, v in dataclasses.asdict(signal).items() if v not in (None, "")}
        if signal.is_time_series:
            facts |= _acquisition(path, signal.index)
        signals.append(facts)
    return {"file": str(path), "kind": "raw file", "signals": signals}


def as_text(facts: dict[str, Any], indent: str = "") -> str:
    """One `key: value` per line, lists of records indented."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for number, record in enumerate(value):
                lines += [f"{indent}{key} {number}:", as_text(record, indent + "  ")]
        elif isinstance(value, dict):
            lines += [f"{indent}{key}:", as_text(value, indent + "  ")]
        else:
            text = " × ".join(map(str, value)) if key == "shape" else _short(value)
            lines.append(f"{indent}{key}: {text}")
    return "\n".join(lines)


def _own(what: str, attributes: Any) -> dict[str, Any]:
    attributes = dict(attributes)
    return {"kind": f"{attributes.pop('kind', 'unknown')} ({what})", **attributes}


def _acquisition(path: Path, index: int) -> dict[str, Any]:
    """Calibration, times and fluence of one time series; what is unknown says so."""
    from atomdiffuser.io.readers import read_series

    try:
        series = read_series(path, signal=index)
    except AtomDiffuserError as error:
        return {"problem": str(error)}
    known = dataclasses.asdict(series.acquisition)
    sources = known.pop("sources")
    facts = {name: "unknown" if value is None else value for name, value in known.items()}
    fluence = series.acquisition.fluence_per_frame_e_per_A2
    missing = ", ".join(series.acquisition.missing_for_fluence())
    facts["fluence_per_frame_e_per_A2"] = f"unknown: needs {missing}" if fluence is None else fluence
    if series.times_s is not None:
        facts["last_frame_starts_s"] = float(series.times_s[-1])
    return {**facts, "from": dict(sources)} if sources else facts


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
