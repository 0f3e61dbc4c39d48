"""session.yaml and series.tsv: what the user knows better than the files.

session.yaml::

    defaults:                      # for every series
      probe_current_pA: 30
    series:                        # by file name, display name or ID; wins over series.tsv and defaults
      LLZO_A.dm4:
        dwell_s: 2.0e-6
        excluded_frames: [0, 10-14]
        conditions: {temperature_K: 300, coating: carbon}
        regions:
          - {name: interface, polygon: [[0, 40], [0, 60], [200, 60], [200, 40]], unit: px}
          - {file: regions.geojson, unit: nm}

series.tsv lists the series to process, one a line: a column `series`, further ones named like the keys above, and
`conditions.<name>`. Series that it does not list are skipped.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomdiffuser.config import describe_error
from atomdiffuser.errors import SettingsError

SESSION_FILE, SERIES_SHEET = "session.yaml", "series.tsv"

MOST_NODES = 100_000
"""Values in session.yaml."""

_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_POINT = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_REGION = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "description": "Name of the region, or of the first of its file"},
        "file": {
            "type": "string",
            "minLength": 1,
            "description": "GeoJSON, napari shapes CSV, or a label image (TIFF, PNG, NPY) inside the session folder",
        },
        "polygon": {"type": "array", "items": _POINT, "minItems": 3, "description": "Corners [y, x]"},
        "unit": {"enum": ["px", "nm"], "description": "Of the corners; label images are in pixels"},
    },
    "additionalProperties": False,
}
_OVERRIDES: dict[str, dict[str, Any]] = {
    "probe_current_pA": {**_POSITIVE, "description": "Beam current in the probe [pA]"},
    "dwell_s": {**_POSITIVE, "description": "Time per pixel [s]"},
    "pixel_size_nm": {
        "anyOf": [_POSITIVE, {"type": "array", "items": _POSITIVE, "minItems": 2, "maxItems": 2}],
        "description": "Scan step, one number or [y, x] [nm]",
    },
    "frame_time_s": {**_POSITIVE, "description": "Start of a frame to start of the next [s]"},
    "dark_level": {"type": "number", "description": "Detector counts without beam"},
    "gain_e": {**_POSITIVE, "description": "Electrons per count"},
    "beam_energy_kV": {**_POSITIVE, "description": "Acceleration voltage [kV]"},
    "probe_size_nm": {**_POSITIVE, "description": "Diameter of the probe, full width at half maximum [nm]"},
    "probe_current_sigma_percent": {
        "type": "number",
        "minimum": 0,
        "maximum": 100,
        "description": "1 σ of the beam current's calibration [%]",
    },
    "regions": {"type": "array", "items": _REGION, "description": "Regions to report on, beside those of the settings"},
    "detector": {"type": "string", "minLength": 1, "description": "Name of the detector"},
    "drift_channel": {
        "type": "string",
        "minLength": 1,
        "description": "Channel of the same acquisition whose drift is taken, such as HAADF; own: each its own",
    },
    "excluded_frames": {
        "type": "array",
        "items": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d+-\d+$"}]},
        "description": "Frames to leave out, counted from 0; a range is written 10-14, both ends included",
    },
    "skip": {"type": "boolean", "description": "Leave the series out"},
    "time_series": {"type": "boolean", "description": "Take a stack for a time series whatever its file says"},
    "conditions": {
        "type": "object",
        "additionalProperties": {"type": ["string", "number"]},
        "description": "What was varied, name to text or number, such as temperature_K or coating",
    },
}

DAMAGE_KEYS = ("regions", "probe_size_nm", "probe_current_sigma_percent")
"""Keys that the damage stage reads; the others describe the frames."""


def session_schema() -> dict[str, Any]:
    """Closed JSON schema of session.yaml."""
    series = {"type": "object", "properties": _OVERRIDES, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "description": "What the user knows better than the raw files of a session",
        "properties": {
            "defaults": {**series, "description": "Values for every series"},
            "series": {
                "type": "object",
                "additionalProperties": series,
                "description": "Values by file name, display name or ID of a series",
            },
        },
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class SessionFile:
    """The validated contents of session.yaml and series.tsv.

    Attributes
    ----------
    defaults
        Overrides for every series.
    series
        Overrides by the key that the user chose for a series.
    sheet
        The same from series.tsv; None without that file.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    series: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sheet: Mapping[str, Mapping[str, Any]] | None = None

    def overrides(self, names: Sequence[str]) -> dict[str, Any]:
        """What applies to the series known under `names`, the least specific name first."""
        layers = [self.defaults]
        for table in (self.sheet or {}, self.series):
            layers += [table[n] for n in names if n in table]
        merged: dict[str, Any] = {}
        for layer in layers:
            conditions = {**merged.get("conditions", {}), **layer.get("conditions", {})}
            merged.update(layer)
            if conditions:
                merged["conditions"] = conditions
        return merged

    def is_listed(self, names: Sequence[str]) -> bool:
        """Whether series.tsv, if there is one, names the series."""
        return self.sheet is None or any(n in self.sheet for n in names)

    def check_keys(self, known: Mapping[str, Iterable[str]]) -> None:
        """Raise SettingsError for keys that no series, or more than one raw file, answers to.

        `known` maps each raw file to the names of its series.
        """
        for source, table in ((SERIES_SHEET, self.sheet or {}), (SESSION_FILE, self.series)):
            for key in table:
                matches = [path for path, names in known.items() if key in names]
                if len(matches) > 1:
                    raise SettingsError(
                        f"{source}: series.{key}: matches {', '.join(matches)}; use the path instead of the name"
                    )
                if not matches:
                    near = difflib.get_close_matches(key, sorted({n for names in known.values() for n in names}), n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"found: {', '.join(sorted(known)) or 'no series'}"
                    raise SettingsError(f"{source}: series.{key}: no such series; {hint}")


def read_session_file(session: Path) -> SessionFile:
    """Read session.yaml and series.tsv of a session folder; both are optional.

    Raises
    ------
    SettingsError
        One line: file, key, value and what is allowed.
    """
    values: dict[str, Any] = {}
    path = session / SESSION_FILE
    if path.is_file():
        values = _load_yaml(path)
        values = {k: _numbers(v, deep=k == "series") for k, v in values.items()}
        _validate(values, SESSION_FILE)
    sheet = _load_sheet(session / SERIES_SHEET) if (session / SERIES_SHEET).is_file() else None
    return SessionFile(
        defaults=_expanded(values.get("defaults", {})),
        series={k: _expanded(v) for k, v in values.get("series", {}).items()},
        sheet=sheet,
    )


def _validate(values: Mapping[str, Any], source: str) -> None:
    import jsonschema

    errors = jsonschema.Draft202012Validator(session_schema()).iter_errors(values)
    for error in sorted(errors, key=lambda e: [str(p) for p in e.absolute_path]):
        raise SettingsError(f"{source}: {describe_error(error)}")
    tables = {"defaults": values.get("defaults", {})}
    tables |= {f"series.{name}": table for name, table in values.get("series", {}).items()}
    for where, table in tables.items():
        for number, region in enumerate(table.get("regions", ())):
            if ("file" in region) == ("polygon" in region):
                raise SettingsError(f"{source}: {where}.regions.{number}: give either a file or a polygon")
            if "polygon" in region and "name" not in region:
                raise SettingsError(f"{source}: {where}.regions.{number}: a polygon needs a name")
        for key, value in table.items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, float) and not math.isfinite(item):
                    raise SettingsError(f"{source}: {where}.{key}: {item} is not allowed; expected a finite number")


def _load_yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and strict about keys given twice."""

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(k, deep=True) for k, _ in node.value]
        line = node.start_mark.line + 1
        for key in keys:
            if not isinstance(key, str):
                raise SettingsError(f"{path.name}: line {line}: the key {key!r} is no text; write it in quotes")
            if keys.count(key) > 1:
                raise SettingsError(f"{path.name}: line {line}: {key} is given twice")
        return {k: loader.construct_object(v, deep=True) for k, (_, v) in zip(keys, node.value, strict=True)}

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        loader = Loader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if node is not None and _expanded_size(node, {}) > MOST_NODES:
            raise SettingsError(f"{path.name}: its aliases stand for more than {MOST_NODES} values; write them out")
        values = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SettingsError(f"{path.name}: {where}not valid YAML ({problem})") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{path.name}: cannot be read ({error}); save it as UTF-8 text") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path.name}: expected the keys `defaults` and `series`, found {type(values).__name__}")
    return {k: {} if v is None else v for k, v in values.items()}


def _expanded_size(node: Any, known: dict[int, int]) -> int:
    """Values that a node stands for with its aliases written out: a few lines can stand for billions."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # while it is being counted: a node that holds itself has no end
        parts = node.value if isinstance(node.value, list) else ()
        children = [n for part in parts for n in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_expanded_size(n, known) for n in children)
    return known[id(node)]


def _numbers(table: Any, *, deep: bool) -> Any:
    """Numbers that YAML 1.1 takes for text, such as 2e-6, as numbers."""
    if not isinstance(table, dict):
        return table
    if deep:
        return {k: _numbers({} if v is None else v, deep=False) for k, v in table.items()}
    return {
        k: _number(v) if k in _OVERRIDES and k not in ("detector", "conditions", "regions") else v
        for k, v in table.items()
    }


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(v) for v in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value.strip()):
        return float(value) if re.search(r"[.eE]", value) else int(value)
    return value


def _expanded(table: Mapping[str, Any]) -> dict[str, Any]:
    """Frame ranges as single frames."""
    result = dict(table)
    if "excluded_frames" in result:
        frames: set[int] = set()
        for item in result["excluded_frames"]:
            first, last = (int(n) for n in item.split("-")) if isinstance(item, str) else (item, item)
            if last < first or last - first > 10**6:
                raise SettingsError(f"{SESSION_FILE}: excluded_frames: {item!r} is no range; write first-last")
            frames.update(range(first, last + 1))
        result["excluded_frames"] = sorted(frames)
    return result


def _load_sheet(path: Path) -> dict[str, dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [r for r in csv.reader(file, delimiter="\t") if any(c.strip() for c in r)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"{path.name}: cannot be read ({error}); save it as tab-separated UTF-8 text") from None
    header = [c.strip() for c in rows[0]] if rows else []
    if "series" not in header:
        raise SettingsError(f"{path.name}: has no column 'series'; its first line must name the columns, tab-separated")
    sheet: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) > len(header):
            raise SettingsError(f"{path.name}: line {number}: {len(row)} cells for {len(header)} columns")
        cells = {k: v.strip() for k, v in zip(header, row, strict=False) if v.strip()}
        name = cells.pop("series", None)
        if name is None:
            raise SettingsError(f"{path.name}: line {number}: the cell 'series' is empty")
        if name in sheet:
            raise SettingsError(f"{path.name}: line {number}: {name} is given twice")
        sheet[name] = _cells(cells)
    _validate({"series": sheet}, path.name)
    return {name: _expanded(table) for name, table in sheet.items()}


def _cells(cells: Mapping[str, str]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, text in cells.items():
        if key.startswith("conditions."):
            table.setdefault("conditions", {})[key.removeprefix("conditions.")] = _number(text)
        elif key in ("skip", "time_series"):
            table[key] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
                text.lower(), text
            )
        elif key == "detector":
            table[key] = text
        elif key == "excluded_frames":
            table[key] = [_number(t) for t in re.split(r"[,;\s]+", text.strip("[]")) if t]
        elif key == "pixel_size_nm" and re.search(r"[,;]", text):
            table[key] = [_number(t) for t in re.split(r"[,;\s]+", text.strip("[]")) if t]
        else:
            table[key] = _number(text)
    return table
