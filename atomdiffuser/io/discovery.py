"""Session folder → its time series, and for everything else that looks like microscope data the reason why not.

Looking into a file and hashing it is remembered as long as size, both time stamps and inode stay the same, so an
unchanged session answers from `stat` calls alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from atomdiffuser._version import __version__
from atomdiffuser.errors import AtomDiffuserError, SettingsError
from atomdiffuser.io import _formats
from atomdiffuser.io.channels import share_drift
from atomdiffuser.io.replacing import replacing_file
from atomdiffuser.io.session_file import SERIES_SHEET, SESSION_FILE, SessionFile, read_session_file

State = Literal["series", "skipped", "failed"]
INSPECTION = 2
"""Raise when inspection finds other things in the same file, so that older caches are not believed."""

LONGEST_SLUG = 80
NO_FILE = "an empty folder with the name of a raw file; copy the file itself from the microscope"
PUT_IN_FOLDER = "put the frames of a series into a subfolder of their own"


@dataclass(frozen=True)
class SeriesEntry:
    """One series of a session, or one file that is none.

    Attributes
    ----------
    series_id
        Slug of letters, digits, - and _: unique in the session, stable from run to run.
    name
        For display.
    sources
        Raw files, relative to the session, in the order of frames.
    signal
        Which signal of the file; None when there is no choice.
    fingerprint
        SHA-256 of the contents; empty when they could not be read.
    overrides
        What session.yaml and series.tsv say of it.
    channel, shape, drift_information
        Of one of several detectors of an acquisition: its title, (t, y, x), and what a frame says about a shift.
    drift_from
        ID of the channel of the same acquisition whose drift it takes; empty when it has its own.
    """

    series_id: str
    name: str
    sources: tuple[str, ...]
    signal: int | None
    fingerprint: str
    size_bytes: int
    state: State
    reason: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    channel: str = ""
    shape: tuple[int, ...] = ()
    drift_information: float = 0.0
    drift_from: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, see `from_json`."""
        return {**asdict(self), "sources": list(self.sources), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SeriesEntry:
        """The entry that `to_json` wrote."""
        return cls(**{**values, "sources": tuple(values["sources"]), "shape": tuple(values.get("shape", ()))})


@dataclass(frozen=True)
class _Unit:
    """Files that belong together: one raw file, or an EMI with its SER files; and what is in them."""

    paths: tuple[Path, ...]
    stamps: tuple[tuple[int, ...], ...] = ()
    size_bytes: int = 0
    fingerprint: str = ""
    signals: tuple[Mapping[str, Any], ...] = ()
    error: str = ""

    @property
    def images(self) -> list[Mapping[str, Any]]:
        return [s for s in self.signals if s["kind"] == "single image"]

    @property
    def series(self) -> list[Mapping[str, Any]]:
        return [s for s in self.signals if s["kind"] == "time series"]


def discover(session: Path, *, results: Path, cache: Path | None = None) -> list[SeriesEntry]:
    """Every series of a session folder, and every microscope file that is none.

    Parameters
    ----------
    session
        Folder of raw files. Multi-frame files are a series each, wherever they lie; a subfolder of single-frame files
        of one shape is one series.
    results
        Folder that is left out.
    cache
        JSON file that remembers what was found; None, or a place that cannot be written, looks at every file again.

    Raises
    ------
    SettingsError
        For a missing folder, and for anything wrong in session.yaml or series.tsv.
    """
    session = Path(session)
    if not session.is_dir():
        raise SettingsError(f"{session}: no such session folder; set `session` to the folder with your raw files")
    settings = read_session_file(session)
    remembered = _read_cache(cache)
    kept: dict[str, Any] = {}
    drafts: list[SeriesEntry] = []
    for folder, files in _folders(session, Path(results)):
        units = [_inspected(u, session, remembered, kept) for u in _units(files)]
        if not files and folder != session and folder.suffix.lower() in _formats.SUFFIXES:
            drafts.append(_entry(session, _Unit((folder,)), "failed", NO_FILE))
        drafts += _entries(session, folder, [u for u in units if u is not None], settings)
    if kept != remembered:
        _write_cache(cache, kept)
    return _with_settings(_with_unique_ids(drafts), settings)


def _folders(session: Path, results: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder of a session with its files; links are followed, each folder is seen once."""
    results = results.resolve()
    seen: set[tuple[int, int]] = set()
    waiting = [session]
    while waiting:
        folder = waiting.pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        files = []
        for name in names:
            path = folder / name
            if name.startswith(".") or (folder == session and name in (SESSION_FILE, SERIES_SHEET)):
                continue
            if not path.is_dir():
                files.append(path)
            elif path.suffix.lower() == ".zspy":
                files.append(path)
            elif path.resolve() != results and not _formats.is_store(path):
                waiting.append(path)
        yield folder, sorted(files, key=_natural)


def _units(files: Sequence[Path]) -> list[_Unit]:
    """Files as they belong together, those of clearly another kind left out."""
    emi = {p.stem.lower(): p for p in files if p.suffix.lower() == ".emi"}
    parts: dict[Path, list[Path]] = {p: [] for p in emi.values()}
    units = []
    for path in files:
        owner = emi.get(path.stem.rpartition("_")[0].lower()) if path.suffix.lower() == ".ser" else None
        if owner is not None and path.stem.rpartition("_")[2].isdecimal():
            parts[owner].append(path)
        elif path not in parts:
            units.append(_Unit((path,)))
    units += [_Unit((owner, *sers)) for owner, sers in parts.items()]
    return sorted(units, key=lambda u: _natural(u.paths[0]))


def _inspected(unit: _Unit, session: Path, remembered: Mapping[str, Any], kept: dict[str, Any]) -> _Unit | None:
    """The unit with what is in it, None when it is no microscope data."""
    first = unit.paths[0]
    promised = first.suffix.lower() in _formats.SUFFIXES
    key = _relative(first, session)
    try:
        stamps = [_stamp(p) for p in unit.paths]
    except OSError as error:
        reason = f"cannot be opened ({error.strerror or error}); is it a link to a missing file?"
        return replace(unit, error=reason) if promised else None
    record = remembered.get(key)
    if record is None or record["stamps"] != stamps:
        record = {"stamps": stamps, **_look(unit, promised)}
    if record["signals"] or record["sha256"] or not record["error"]:
        kept[key] = record  # what could not even be opened may open next time
    if record["ignored"]:
        return None
    return replace(
        unit,
        size_bytes=sum(s[0] for s in stamps),
        fingerprint=record["sha256"],
        signals=tuple(record["signals"]),
        error=record["error"],
    )


def _look(unit: _Unit, promised: bool) -> dict[str, Any]:
    from atomdiffuser.io._fingerprint import fingerprint_of
    from atomdiffuser.io.readers import inspect

    found: dict[str, Any] = {"ignored": False, "signals": [], "error": "", "sha256": ""}
    try:
        kind = _formats.sniff(unit.paths[0])
        if (kind is None and not promised) or (kind == _formats.ZSPY and _is_result(unit.paths[0])):
            return {**found, "ignored": True}
        found["sha256"] = fingerprint_of(unit.paths)
        found["signals"] = json.loads(json.dumps([asdict(s) for s in inspect(unit.paths[0])]))
        _weigh_channels(unit.paths[0], found["signals"])
    except AtomDiffuserError as error:
        found["ignored"] = not promised
        found["error"] = str(error).removeprefix(f"{unit.paths[0]}: ")
    return found


def _weigh_channels(path: Path, signals: list[dict[str, Any]]) -> None:
    """Note for each time series of several in a file what its first frame says about a shift."""
    from atomdiffuser.io.channels import drift_information
    from atomdiffuser.io.readers import quiet, read_series

    channels = [s for s in signals if s["kind"] == "time series"]
    for signal in channels if len(channels) > 1 else ():
        try:
            with quiet():
                signal["drift_information"] = drift_information(read_series(path, signal=signal["index"]).frame(0))
        except Exception:  # the convert stage will say what is wrong with it
            signal["drift_information"] = 0.0


def _is_result(store: Path) -> bool:
    """Whether a Zarr folder is a result of this package rather than raw data."""
    try:
        return "atomdiffuser" in json.loads((store / "zarr.json").read_text(encoding="utf-8")).get("attributes", {})
    except (OSError, ValueError, AttributeError):
        return False


def _stamp(path: Path) -> list[int]:
    """What changes when a file does, even when its replacement is older: size, both times, inode."""
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    members = [p.stat() for p in sorted(path.rglob("*"))]
    return [
        sum(m.st_size for m in members if not stat.S_ISDIR(m.st_mode)),
        max((m.st_mtime_ns for m in members), default=0),
        max((m.st_ctime_ns for m in members), default=0),
        len(members),
    ]


def _entries(session: Path, folder: Path, units: list[_Unit], settings: SessionFile) -> list[SeriesEntry]:
    """The entries of one folder: its multi-frame files, and its single frames together."""
    entries, loose = [], []
    for unit in units:
        names = _file_names(unit, session)
        if unit.error:
            entries.append(_entry(session, unit, "failed", unit.error))
        elif settings.overrides(names).get("time_series") and any(s["is_stack"] for s in unit.signals):
            entries += _channels(session, unit, [s for s in unit.signals if s["is_stack"]])
        elif unit.series:
            entries += _channels(session, unit, unit.series)
        elif unit.images:
            loose.append(unit)
        else:
            entries.append(_entry(session, unit, "skipped", _description(unit) + _way_out(unit.signals)))
    alone = len(loose) == len(units) or not any(e.state == "series" for e in entries)
    if folder != session and len(loose) > 1 and alone:
        entries += _single_frames(session, folder, loose, settings)
    else:
        entries += [_entry(session, u, "skipped", f"{_description(u)}; {PUT_IN_FOLDER}") for u in loose]
    return sorted(entries, key=lambda e: _natural(Path(e.sources[0])))


def _channels(session: Path, unit: _Unit, signals: list[Mapping[str, Any]]) -> list[SeriesEntry]:
    if len(signals) == 1:
        return [_entry(session, unit, "series")]
    titles = Counter(s["title"] for s in signals)
    labels = [s["title"] if titles[s["title"]] == 1 else f"{s['title']} {s['index']}" for s in signals]
    return [
        replace(
            _entry(session, unit, "series", signal=s["index"], channel=label),
            channel=label,
            shape=tuple(s["shape"]),
            drift_information=s.get("drift_information", 0.0),
        )
        for s, label in zip(signals, labels, strict=True)
    ]


def _single_frames(session: Path, folder: Path, units: list[_Unit], settings: SessionFile) -> list[SeriesEntry]:
    """Single-frame files of one shape as one series; odd ones out are skipped."""
    from atomdiffuser.io._fingerprint import combined, fingerprint_of

    shapes = Counter(_shape(u) for u in units)
    shape, count = shapes.most_common(1)[0]
    if count <= len(units) / 2 or count < 2:
        return [
            _entry(
                session, u, "skipped", f"a single image, and the images in this folder differ in shape; {PUT_IN_FOLDER}"
            )
            for u in units
        ]
    frames = [u for u in units if _shape(u) == shape]
    odd = [
        _entry(session, u, "skipped", f"a single image of another shape or type than the {count} others in this folder")
        for u in units
        if _shape(u) != shape
    ]
    starts = [u.images[0]["started_s"] for u in frames]
    if None not in starts:
        frames = [u for _, u in sorted(zip(starts, frames, strict=True), key=lambda pair: pair[0])]
    paths = tuple(p for u in frames for p in u.paths)
    one_each = len(paths) == len(frames)  # otherwise the fingerprint of a frame is that of several files
    whole = _Unit(
        paths=paths,
        size_bytes=sum(u.size_bytes for u in frames),
        fingerprint=combined([u.fingerprint for u in frames]) if one_each else fingerprint_of(paths),
    )
    relative = _relative(folder, session)
    reason = _not_one_series(frames)
    trusted = settings.overrides([relative, folder.name, _slug(folder.name)]).get("time_series")
    entries = []
    for k, image in enumerate(frames[0].images):
        several = len(frames[0].images) > 1
        name = f"{folder.name} {image['title']}" if several else folder.name
        if reason and not trusted:
            entry = _entry(session, whole, "skipped", reason + _way_out([{"is_stack": True}]))
        else:
            entry = _entry(session, whole, "series")
        entry = replace(entry, series_id=_slug(name), name=_printable(name), signal=k if several else None)
        if several:
            entry = replace(entry, channel=image["title"], shape=(len(frames), *image["shape"][-2:]))
        entries.append(entry)
    return entries + odd


def _not_one_series(frames: list[_Unit]) -> str:
    from atomdiffuser.io._raw_signal import same_pixel_size, tilt_reason

    images = [u.images[0] for u in frames]
    tilts = [i["tilt_deg"] for i in images]
    if None not in tilts and (reason := tilt_reason(tilts)):
        return reason
    for unit, image in zip(frames, images, strict=True):
        if not same_pixel_size(image["pixel_size_nm"], images[0]["pixel_size_nm"]):
            return f"images of different magnification ({frames[0].paths[0].name}, {unit.paths[0].name})"
    return ""


def _shape(unit: _Unit) -> tuple[Any, ...]:
    return tuple((tuple(i["shape"][-2:]), i["dtype"]) for i in unit.images)


def _way_out(signals: Sequence[Mapping[str, Any]]) -> str:
    """How to insist, for what could be a time series that its file describes wrongly."""
    stack = any(s["is_stack"] for s in signals)
    return f"; if it is a time series, set time_series: true for it in {SESSION_FILE}" if stack else ""


def _description(unit: _Unit) -> str:
    if len(unit.signals) == 1:
        return str(unit.signals[0]["reason"])
    return "; ".join(f"{s['title']!r} is {s['reason']}" for s in unit.signals) or "no data"


def _entry(
    session: Path, unit: _Unit, state: State, reason: str = "", *, signal: int | None = None, channel: str = ""
) -> SeriesEntry:
    stem = unit.paths[0].stem
    return SeriesEntry(
        series_id=_slug(stem) + (f"-{_slug(channel)}" if channel else ""),
        name=_printable(f"{stem} {channel}".strip()),
        sources=tuple(_relative(p, session) for p in unit.paths),
        signal=signal,
        fingerprint=unit.fingerprint,
        size_bytes=unit.size_bytes,
        state=state,
        reason=reason,
    )


def _with_unique_ids(entries: list[SeriesEntry]) -> list[SeriesEntry]:
    """Entries of equal slug get the hash of their path appended, all of them: none depends on what else is there."""
    counts = Counter(e.series_id.lower() for e in entries)
    result = []
    for entry in entries:
        if counts[entry.series_id.lower()] > 1:
            digest = hashlib.sha256(os.fsencode(f"{_origin(entry)}#{entry.signal}")).hexdigest()[:8]
            entry = replace(entry, series_id=f"{entry.series_id}-{digest}")
        result.append(entry)
    return result


def _with_settings(entries: list[SeriesEntry], settings: SessionFile) -> list[SeriesEntry]:
    """Entries with their overrides, those that the user leaves out marked as skipped."""
    known: dict[str, list[str]] = {}
    for entry in entries:
        known.setdefault(_origin(entry), []).extend(_names(entry))
    settings.check_keys(known)
    result, channels = [], {}
    for entry in entries:
        overrides = settings.overrides(_names(entry))
        skip = overrides.pop("skip", False)
        if channel := overrides.pop("drift_channel", None):
            channels[entry.series_id] = channel
        entry = replace(entry, overrides=overrides)
        if entry.state != "skipped" and skip:
            entry = replace(entry, state="skipped", reason=f"skip is set in {SESSION_FILE} or {SERIES_SHEET}")
        elif entry.state == "series" and not settings.is_listed(_names(entry)):
            entry = replace(entry, state="skipped", reason=f"not listed in {SERIES_SHEET}")
        result.append(entry)
    return share_drift(result, channels)


def _origin(entry: SeriesEntry) -> str:
    """The file, or folder of single frames, that an entry comes from."""
    first, *others = entry.sources
    return first if all(other.lower().endswith(".ser") for other in others) else os.path.dirname(first)


def _names(entry: SeriesEntry) -> list[str]:
    """Everything that a user may call a series in session.yaml, the least specific first."""
    origin = Path(_origin(entry))
    names = [origin.stem, _slug(origin.stem), origin.name, origin.as_posix(), entry.name, entry.series_id]
    return list(dict.fromkeys(names))


def _file_names(unit: _Unit, session: Path) -> list[str]:
    path = Path(_relative(unit.paths[0], session))
    return list(dict.fromkeys([path.stem, _slug(path.stem), path.name, path.as_posix()]))


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-")
    if not slug:
        return f"series-{hashlib.sha256(os.fsencode(text)).hexdigest()[:8]}"
    if len(slug) > LONGEST_SLUG:
        return f"{slug[:LONGEST_SLUG]}-{hashlib.sha256(os.fsencode(text)).hexdigest()[:8]}"
    return slug


def _printable(name: str) -> str:
    """A name on one line, in which bytes that are no Unicode and control characters show as question marks."""
    name = name.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c == " " else "?" for c in name)


def _relative(path: Path, session: Path) -> str:
    return path.relative_to(session).as_posix()


def _natural(path: Path) -> tuple[Any, ...]:
    parts = re.split(r"(\d+)", path.as_posix())
    return (*((int(p), "") if p.isdecimal() else (-1, p.lower()) for p in parts), (-1, path.as_posix()))


def _read_cache(cache: Path | None) -> dict[str, Any]:
    if cache is None:
        return {}
    try:
        values = json.loads(Path(cache).read_text(encoding="utf-8"))
        if values["version"] == __version__ and values["inspection"] == INSPECTION:
            return {
                k: r
                for k, r in values["files"].items()
                if {"stamps", "signals", "sha256", "error", "ignored"} <= r.keys()
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _write_cache(cache: Path | None, files: Mapping[str, Any]) -> None:
    """Remember; a place that cannot be written is no failure."""
    if cache is None:
        return
    with suppress(OSError), replacing_file(cache) as temporary:
        temporary.write_text(json.dumps({"version": __version__, "inspection": INSPECTION, "files": files}))
