"""Raw microscope files → `FrameSeries`, lazily, one chunk a frame."""

from __future__ import annotations

import difflib
import gc
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from atomdiffuser.errors import AtomDiffuserError, MetadataError, NotATimeSeries, ReadError, SettingsError
from atomdiffuser.io import _formats
from atomdiffuser.io._declared_size import MOST_COMPRESSION, check_declared
from atomdiffuser.io._raw_signal import (
    Axis,
    Kind,
    RawSignal,
    classify,
    frame_times,
    pixel_size_nm,
    positive,
    same_pixel_size,
    time_s,
)
from atomdiffuser.io.remote import RemotePath, here
from atomdiffuser.series import Acquisition, FrameSeries

ACQUISITION_OVERRIDES = tuple(f.name for f in fields(Acquisition) if f.name != "sources")
OVERRIDES = (*ACQUISITION_OVERRIDES, "excluded_frames", "time_series")
"""What can be set by hand, see `apply_overrides`."""


@dataclass(frozen=True)
class SignalInfo:
    """One data set in a raw file.

    Attributes
    ----------
    kind
        "time series", "single image" or "other".
    reason
        Why it is no time series; empty when it is one.
    acquired_at, started_s
        Start of the acquisition as ISO 8601, and on the finest clock of the file [s].
    tilt_deg
        Stage tilt.
    is_stack
        Whether it can be read as a time series when the user says that it is one (`time_series=True`).
    """

    index: int
    title: str
    detector: str | None
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    reason: str = ""
    acquired_at: str | None = None
    started_s: float | None = None
    tilt_deg: float | None = None
    pixel_size_nm: tuple[float, float] | None = None
    is_stack: bool = False

    @property
    def is_time_series(self) -> bool:
        """Whether it is one."""
        return self.kind == "time series"


def inspect(path: str | Path | Sequence[str | Path]) -> list[SignalInfo]:
    """Every signal in a file, in a folder of single frames, or in a list of such files.

    Raises ReadError when it cannot be read as microscope data.
    """
    path = _one_or_many(path)
    if isinstance(path, Path):
        return [_info(k, s) for k, s in enumerate(_load(path))]
    return [_info(k, s) for k, s in enumerate(_folder_signals(path))]


def read_series(
    path: str | Path | Sequence[str | Path], *, signal: int | str | None = None, **overrides: Any
) -> FrameSeries:
    """Read a time series, lazily.

    Parameters
    ----------
    path
        A raw file, or a folder or list of single-frame files of one shape (taken in order of acquisition). Files and
        frame stores in an object store have addresses such as `s3://bucket/a.dm4`.
    signal
        Which of several time series in a file: its index in `inspect(path)`, or its title.
    overrides
        Values that replace what the file says: `Acquisition`'s fields, `excluded_frames`, and `time_series=True` for a
        stack whose axis the file describes wrongly.

    Raises
    ------
    ReadError
        When the file is damaged or of no known format.
    NotATimeSeries
        When it holds something else, or several time series and `signal` does not say which.
    MetadataError, SettingsError
        When overrides contradict the data, or are unknown.

    Examples
    --------
    >>> import tempfile
    >>> from atomdiffuser.stages.simulate import simulate
    >>> path = tempfile.mkdtemp() + "/lamella.emd"
    >>> _ = simulate(path, format="emd", n_frames=3, shape=(48, 64), pixel_size_nm=0.03, known_current=False)
    >>> series = read_series(path, probe_current_pA=30)
    >>> series.name, series.n_frames, series.frame_shape, series.acquisition.sources["probe_current_pA"]
    ('lamella', 3, (48, 64), 'argument')
    """
    _check_overrides(overrides)
    trust = bool(overrides.get("time_series"))
    path = here(path)
    if isinstance(path, RemotePath):
        from atomdiffuser.io.store import read_frames

        return apply_overrides(read_frames(path), overrides, source="argument")
    path = _one_or_many(path)
    if isinstance(path, Path) and _formats.sniff(path) == _formats.FRAMES:
        from atomdiffuser.io.store import read_frames

        return apply_overrides(read_frames(path), overrides, source="argument")
    where = path if isinstance(path, Path) else path[0].parent
    signals = _load(path) if isinstance(path, Path) else _folder_signals(path)
    raw = _choose(where, signals, signal, trust)
    several = sum(classify(s)[0] == "time series" for s in signals) > 1
    stem = where.stem if where.is_file() else where.resolve().name
    series = series_of(raw, f"{stem} {raw.title}" if several else stem)
    return apply_overrides(series, overrides, source="argument")


def apply_overrides(series: FrameSeries, overrides: Mapping[str, Any], *, source: str) -> FrameSeries:
    """A copy of the series in which values set by hand replace the file's, each marked as coming from `source`.

    `pixel_size_nm` may be one number for both axes; `frame_time_s` also replaces the frames' times.
    """
    _check_overrides(overrides)
    values = {k: v for k, v in overrides.items() if k in ACQUISITION_OVERRIDES and v is not None}
    if "pixel_size_nm" in values:
        pixel = values["pixel_size_nm"]
        pair = tuple(map(float, pixel)) if isinstance(pixel, Sequence) else (float(pixel),) * 2
        if len(pair) != 2:
            raise MetadataError(f"pixel_size_nm is {pixel} for {series.name!r}, expected one number or [y, x]")
        values["pixel_size_nm"] = pair
    times = series.times_s
    if "frame_time_s" in values:
        times = frame_times(series.n_frames, positive(values["frame_time_s"]))
    excluded = overrides.get("excluded_frames")
    return replace(
        series,
        times_s=times,
        acquisition=series.acquisition.with_overrides(source, **values),
        excluded=series.excluded if excluded is None else tuple(sorted(set(excluded))),
    )


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    for key in overrides:
        if key not in OVERRIDES:
            near = difflib.get_close_matches(key, OVERRIDES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SettingsError(f"{key}: unknown override; {hint}allowed here: {', '.join(sorted(OVERRIDES))}")


def _load(path: Path) -> list[RawSignal]:
    """Every signal of one file; whatever goes wrong in a foreign reader becomes a ReadError."""
    found = _formats.sniff(path)
    if found is None:
        promised = _formats.SUFFIXES.get(path.suffix.lower())
        if promised == _formats.MRC and path.stat().st_size >= 1024:
            found = promised  # before MRC2000 nothing marks the format
        elif path.is_dir():
            raise ReadError(f"{path}: a folder without microscope files; give a raw file or a folder of single frames")
        elif promised:
            raise ReadError(f"{path}: is named like {promised} but does not start like one; copy it again")
        else:
            raise ReadError(
                f"{path}: of no known microscope format; expected one of {', '.join(sorted(_formats.SUFFIXES))}"
            )
    try:
        with quiet():
            signals = [_checked(path, found, s) for s in _reader(found)(path)]
    except AtomDiffuserError as error:
        _release(error)
        raise
    except MemoryError as error:
        _release(error)
        raise ReadError(
            f"{path}: needs more memory than there is ({error}); it may be damaged: copy it again, or free memory"
        ) from error
    except Exception as error:
        _release(error)
        raise ReadError(
            f"{path}: cannot be read as {found} ({type(error).__name__}: {error}); "
            "it may be truncated or damaged, copy it again from the microscope"
        ) from error
    if not signals:
        raise ReadError(f"{path}: a {found} file without data; was the acquisition stopped before the first frame?")
    return signals


def _release(error: BaseException | None) -> None:
    """Close what a failed reader left open in the frames of its traceback.

    A file of HDF5 that stays open would be taken for the one that is copied over it.
    """
    with quiet():
        while error is not None:
            trace = error.__traceback__
            while trace is not None:
                frame: FrameType | None = trace.tb_frame
                while frame is not None:  # also those that dask takes out of its tracebacks
                    with suppress(RuntimeError):  # still at work
                        frame.clear()
                    frame = frame.f_back
                trace = trace.tb_next
            error = error.__cause__ or error.__context__
        gc.collect()


def _reader(name: str) -> Any:
    if name == _formats.DM:
        from atomdiffuser.io._digital_micrograph import read_digital_micrograph as reader
    elif name == _formats.VELOX:
        from atomdiffuser.io._velox import read_velox as reader
    elif name in (_formats.SER, _formats.EMI):
        from atomdiffuser.io import _tia

        reader = _tia.read_ser if name == _formats.SER else _tia.read_emi
    elif name == _formats.TIFF:
        from atomdiffuser.io._tiff import read_tiff as reader
    else:
        from atomdiffuser.io import _other_formats as other

        reader = {
            _formats.MRC: other.read_mrc,
            _formats.NCEM: other.read_ncem,
            _formats.HSPY: other.read_hspy,
            _formats.ZSPY: other.read_zspy,
        }[name]
    return reader


def _checked(path: Path, found: str, signal: RawSignal) -> RawSignal:
    """The signal after its last frame could be read: a truncated file shows only there."""
    data = signal.data
    stored_as_it_is = found in (_formats.DM, _formats.MRC, _formats.SER)
    if signal.is_decoded:
        check_declared(path, data.shape, data.dtype, ratio=1 if stored_as_it_is else MOST_COMPRESSION)
    if len(data.shape) in (2, 3) and data.dtype.names is None and 0 not in data.shape:
        np.asarray(data[-1])
    return signal


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what foreign readers warn and log away from users: what matters is in the result or an error."""
    loggers = [logging.getLogger(name) for name in ("rsciio", "RosettaSciIO", "tifffile")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _info(index: int, signal: RawSignal) -> SignalInfo:
    kind, reason = classify(signal)
    return SignalInfo(
        index=index,
        title=signal.title,
        detector=signal.fields.get("detector"),
        shape=tuple(int(n) for n in signal.data.shape),
        dtype=str(signal.data.dtype),
        kind=kind,
        reason=reason,
        acquired_at=signal.fields.get("acquired_at"),
        started_s=_started_s(signal),
        tilt_deg=signal.tilts_deg[0] if signal.tilts_deg else None,
        pixel_size_nm=pixel_size_nm(signal) if kind != "other" else None,
        is_stack=classify(signal, trust_user=True)[0] == "time series",
    )


def _choose(path: Path, signals: list[RawSignal], wanted: int | str | None, trust_user: bool) -> RawSignal:
    if wanted is not None:
        if isinstance(wanted, int):
            matches = signals[wanted : wanted + 1] if wanted >= 0 else []
        else:
            matches = [s for s in signals if s.title == wanted]
        if len(matches) != 1:
            titles = ", ".join(f"{k} ({s.title})" for k, s in enumerate(signals))
            raise NotATimeSeries(f"{path}: has no signal {wanted!r}; choose one of {titles}")
        signal = matches[0]
        kind, reason = classify(signal, trust_user=trust_user)
        if kind != "time series":
            raise NotATimeSeries(f"{path}: signal {signal.title!r} is {reason}")
        return signal
    kinds = [classify(s, trust_user=trust_user) for s in signals]
    series = [s for s, (kind, _) in zip(signals, kinds, strict=True) if kind == "time series"]
    if len(series) > 1:
        titles = ", ".join(repr(s.title) for s in series)
        raise NotATimeSeries(f"{path}: holds {len(series)} time series ({titles}); choose one with `signal`")
    if not series:
        raise NotATimeSeries(f"{path}: {describe([_info(k, s) for k, s in enumerate(signals)])}, not a time series")
    return series[0]


def describe(signals: Sequence[SignalInfo]) -> str:
    """What a file without a time series holds, in one phrase."""
    if len(signals) == 1:
        return signals[0].reason
    return "; ".join(f"{s.title!r} is {s.reason}" for s in signals)


def series_of(signal: RawSignal, name: str) -> FrameSeries:
    """A raw signal as a series: times from its axis and recorded starts, calibration from axes and fields."""
    n, axis = signal.data.shape[0], signal.axes[0]
    seconds = time_s(axis.unit)
    step = positive(axis.scale, seconds) if seconds else None
    times = frame_times(n, step, signal.starts_s, signal.starts_resolution_s)
    if times is not None and n > 1:
        step = step if step and np.allclose(np.diff(times), step, rtol=1e-9) else float(np.median(np.diff(times)))
    values = {"pixel_size_nm": pixel_size_nm(signal), "frame_time_s": step, **signal.fields}
    known = {k: v for k, v in values.items() if v is not None}
    data = signal.data
    if data.dtype.kind == "b" or data.dtype.byteorder not in "=|":
        data = data.astype(np.uint8 if data.dtype.kind == "b" else data.dtype.newbyteorder("="))
    return FrameSeries(
        frames=data.rechunk((1, *data.shape[1:])) if hasattr(data, "rechunk") else data,
        times_s=times,
        acquisition=Acquisition(**known, sources=dict.fromkeys(known, "file")),
        name=name,
        original_metadata=signal.original_metadata,
    )


def _one_or_many(path: str | Path | Sequence[str | Path]) -> Path | list[Path]:
    """The one file or store that is meant, or the single-frame files of a series."""
    if isinstance(path, str | Path):
        path = Path(path)
        return path if not path.is_dir() or _formats.is_store(path) else _microscope_files(path)
    files = [Path(p) for p in path]
    if not files:
        raise ReadError("no files given; expected a raw file, or the single-frame files of a series")
    emi = [p for p in files if p.suffix.lower() == ".emi"]
    if len(emi) == 1 and all(p.suffix.lower() in (".emi", ".ser") for p in files):
        return emi[0]
    return _one_or_many(files[0]) if len(files) == 1 else _without_parts(files)


def _without_parts(files: list[Path]) -> list[Path]:
    """The files less the SER files that an EMI file among them stands for."""
    emi = {p.stem.lower() for p in files if p.suffix.lower() == ".emi"}
    return [p for p in files if p.suffix.lower() != ".ser" or p.stem.rpartition("_")[0].lower() not in emi]


def _microscope_files(folder: Path) -> list[Path]:
    files = [p for p in sorted(folder.iterdir(), key=natural_key) if not p.name.startswith(".") and p.is_file()]
    files = [p for p in files if p.suffix.lower() in _formats.SUFFIXES or _formats.sniff(p)]
    if not files:
        raise ReadError(f"{folder}: a folder without microscope files; give a raw file or a folder of single frames")
    return _without_parts(files)


def _folder_signals(files: list[Path]) -> list[RawSignal]:
    """The series that single-frame files make up: one for each image that every file holds."""
    loaded = [(p, _load(p)) for p in sorted(files, key=natural_key)]
    images: list[list[tuple[Path, int, RawSignal]]] = []
    for path, signals in loaded:
        kinds = [classify(s)[0] for s in signals]
        if "time series" in kinds and len(files) > 1:
            raise NotATimeSeries(f"{path}: holds several frames, expected one; read it as a series of its own")
        found = [(path, k, s) for k, (s, kind) in enumerate(zip(signals, kinds, strict=True)) if kind == "single image"]
        if not found:
            raise NotATimeSeries(f"{path}: holds no image; remove it from the folder of single frames")
        images.append(found)
    if len({len(found) for found in images}) > 1:
        counts = ", ".join(f"{f[0][0].name}: {len(f)}" for f in images[:4])
        raise NotATimeSeries(f"{files[0].parent}: its files hold different numbers of images ({counts}, …)")
    return [_stacked(list(channel)) for channel in zip(*images, strict=True)]


def _stacked(frames: list[tuple[Path, int, RawSignal]]) -> RawSignal:
    """One signal from the images of several files, in order of acquisition, then of name."""
    import dask
    import dask.array as da

    starts = np.array([_started_s(s) if _started_s(s) is not None else np.nan for _, _, s in frames])
    if np.all(np.isfinite(starts)):
        order = np.argsort(starts, kind="stable")
        frames, starts = [frames[k] for k in order], starts[order]
    first = frames[0][2]
    shape, dtype, pixel = _image(first).shape, first.data.dtype, pixel_size_nm(first)
    obstacle = ""
    for path, _, signal in frames:
        if _image(signal).shape != shape or signal.data.dtype != dtype:
            raise ReadError(
                f"{path}: is {_image(signal).shape} {signal.data.dtype}, but {frames[0][0].name} is {shape} {dtype}; "
                "the frames of a series have one shape: move others to another folder"
            )
        other = pixel_size_nm(signal)
        if not same_pixel_size(pixel, other):
            obstacle = f"images of different magnification (pixel size {pixel} nm, in {path.name} {other} nm)"
    delayed = dask.delayed(_read_image, pure=False)
    data = da.stack([da.from_delayed(delayed(p, k), shape=shape, dtype=dtype) for p, k, _ in frames])
    tilts = [t for _, _, s in frames for t in s.tilts_deg[:1]]
    return replace(
        first,
        data=data,
        axes=(Axis("frame", "", 1.0), *first.axes[-2:]),
        starts_s=starts,
        starts_resolution_s=max(s.starts_resolution_s if s.starts_s is not None else 1.0 for _, _, s in frames),
        tilts_deg=tuple(tilts) if len(tilts) == len(frames) else (),
        obstacle=obstacle,
    )


def _image(signal: RawSignal) -> Any:
    return signal.data if len(signal.data.shape) == 2 else signal.data[0]


def _read_image(path: Path, index: int) -> np.ndarray:
    return np.asarray(_image(_load(path)[index]))


def _started_s(signal: RawSignal) -> float | None:
    """When a signal was recorded, on the finest clock that its file keeps [s]."""
    if signal.starts_s is not None and len(signal.starts_s):
        return float(signal.starts_s[0])
    try:
        return datetime.fromisoformat(signal.fields.get("acquired_at") or "").timestamp()
    except ValueError:
        return None


def natural_key(path: Path) -> tuple[Any, ...]:
    """Sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return (*((int(part), "") if part.isdecimal() else (-1, part.lower()) for part in parts), (-1, str(path)))
