"""`atomdiffuser info`: what a file is, in a few lines or as JSON."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import rich_click as click

from atomdiffuser.errors import AtomDiffuserError


def print_info(path: Path, *, as_json: bool) -> None:
    """Print what `describe` finds, and what session.yaml could add."""
    facts = describe(path)
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False, default=str))
        return
    click.echo(session_text(facts) if facts["kind"] == "session" else as_text(facts))
    if advice := missing_text(facts):
        click.echo(f"\n{advice}")


def session_text(facts: dict[str, Any]) -> str:
    """A session in one line a series: first what is analysed or will be, then what is skipped and why."""
    found = [s for s in facts["series"] if s["state"] != "skipped"]
    skipped = [s for s in facts["series"] if s["state"] == "skipped"]
    lines = [f"{facts['file']}: {len(found)} series"]
    for entry in found:
        shared = f", drift of {entry['drift_from']}" if "drift_from" in entry else ""
        reason = f": {entry['reason']}" if "reason" in entry else ""
        lines.append(f"  {entry['name']}: {entry['state']}{shared}{reason}")
    if skipped:
        lines += ["", f"{len(skipped)} skipped", *(f"  {s['name']}: {s['reason']}" for s in skipped)]
    if any(s["state"] == "not analysed yet" for s in found):
        lines += ["", f"Analyse: atomdiffuser run {shlex.quote(facts['file'])}"]
    return "\n".join(lines)


def missing_text(facts: dict[str, Any]) -> str:
    """What the file does not say and fluence needs, as lines for session.yaml; empty when nothing is missing."""
    missing = sorted({name for signal in facts.get("signals", ()) for name in signal.get("missing", ())})
    if not missing:
        return ""
    examples = {"probe_current_pA": "30", "dwell_s": "2.0e-6", "pixel_size_nm": "0.02"}
    lines = [f"    {name}: {examples[name]}  # your value" for name in missing]
    head = "Without these there is no fluence, and results are given against time. If you know them, write into"
    name = Path(facts["file"]).name
    return "\n".join([f"{head} session.yaml beside the raw files:", "series:", f"  {name}:", *lines])


def describe(path: Path) -> dict[str, Any]:
    """Kind and contents of a raw microscope file, of one of our own stores and tables, or of a session or its results.

    Raises ReadError for what is none of them.
    """
    path = path.parent if path.name == "zarr.json" else path
    if path.is_dir() and (found := _folder(path)):
        return {"file": str(path), **found}
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


def _folder(path: Path) -> dict[str, Any] | None:
    """A session, its results or the results of one series; None for stores and folders of single frames."""
    from atomdiffuser.cli_pages import outcome
    from atomdiffuser.io._formats import is_store
    from atomdiffuser.io.discovery import discover

    if is_store(path):
        return None
    if (path / "status.json").is_file():
        found = next(s for s in outcome(path.parent)["series"] if s["series"] == path.absolute().name)
        return {"kind": "results of one series", **found, "holds": sorted(p.name for p in path.iterdir())}
    if (path / "summary.csv").is_file() or any(path.glob("*/status.json")):
        return {"kind": "results of a session", **outcome(path)}
    entries = discover(path, results=path / "results")
    if not any(e.state == "series" for e in entries) or (len(entries) == 1 and len(entries[0].sources) > 1):
        return None  # a folder of single frames is described as the one series that it is
    states = {s["series"]: s for s in outcome(path / "results")["series"]}
    series = []
    for entry in entries:
        status = states.get(entry.series_id, {"state": "not analysed yet"})
        state, reason = (
            (entry.state, entry.reason) if entry.state != "series" else (status["state"], status.get("reason", ""))
        )
        facts = {"name": entry.name, "series": entry.series_id, "state": state, "reason": reason}
        facts |= {"drift_from": entry.drift_from, "report": status.get("report")}
        series.append({k: v for k, v in facts.items() if v})
    return {"kind": "session", "series": series}


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
    missing = series.acquisition.missing_for_fluence()
    facts["fluence_per_frame_e_per_A2"] = "unknown" if fluence is None else fluence
    if missing:
        facts["missing"] = missing
    if series.times_s is not None:
        facts["last_frame_starts_s"] = float(series.times_s[-1])
    return {**facts, "from": dict(sources)} if sources else facts


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
