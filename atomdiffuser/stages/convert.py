"""Raw file → frames.ome.zarr: one frame after the other, so memory stays bounded whatever the series' size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atomdiffuser.config import ConvertSettings
from atomdiffuser.errors import AtomDiffuserError, ReadError
from atomdiffuser.io._fingerprint import fingerprint_of
from atomdiffuser.io.readers import apply_overrides, quiet, read_series
from atomdiffuser.io.store import FrameWriter, create_frames
from atomdiffuser.memory_limit import room, warn_if_too_small
from atomdiffuser.read_ahead import read_ahead
from atomdiffuser.series import FrameSeries

BATCH_BYTES = 16 * 2**20
"""Frames are read together up to this size: source files may be chunked across frames."""


def convert(
    sources: Sequence[Path],
    output: Path,
    settings: ConvertSettings,
    *,
    series_id: str,
    name: str,
    signal: int | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    fingerprint: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the series of `sources` as a frame store.

    Parameters
    ----------
    sources
        A raw file, an EMI file with its SER files, or the single-frame files of a series.
    output
        frames.ome.zarr; replaced when it exists.
    series_id, name
        The series' slug, and its name for display.
    signal
        Which time series of the file, see `read_series`.
    overrides
        Values from session.yaml or series.tsv that replace the file's; `conditions` among them are kept as attributes.
    fingerprint
        SHA-256 of the sources' contents; computed when not given.
    progress
        Called with (frames done, frames in all).

    Raises
    ------
    ReadError, NotATimeSeries, MetadataError
        With what is wrong with which file.
    """
    sources = [Path(s) for s in sources]
    overrides = dict(overrides or {})
    conditions = overrides.pop("conditions", {})
    trusted = {"time_series": True} if overrides.get("time_series") else {}
    series = read_series(sources, signal=signal, **trusted)
    series = dataclasses.replace(series, name=name)
    series = apply_overrides(series, overrides, source="session.yaml")
    attributes = {
        "series": series_id,
        "sources": [str(s) for s in sources],
        "size_bytes": sum(s.stat().st_size for s in sources if s.is_file()),
        "fingerprint": fingerprint or fingerprint_of(sources),
        "signal": signal,
        "settings": dataclasses.asdict(settings),
        "overrides": overrides,
        "conditions": conditions,
    }
    warn_if_too_small("convert", series.frame_shape)
    with create_frames(
        output,
        n_frames=series.n_frames,
        frame_shape=series.frame_shape,
        dtype=series.frames.dtype,
        times_s=series.times_s,
        acquisition=series.acquisition,
        name=name,
        excluded=series.excluded,
        attributes=attributes,
        original_metadata=series.original_metadata,
        pyramid_levels=settings.pyramid_levels,
        compression_level=settings.compression_level,
    ) as writer:
        _copy(series, writer, sources[0], progress)
        if (contents := fingerprint_of(sources)) != attributes["fingerprint"]:  # before the store takes its name
            raise ReadError(
                f"{sources[0]}: changed while it was read, or since the session was looked at ({contents[:8]}, "
                f"not {attributes['fingerprint'][:8]}); wait until it is written or copied, then run again"
            )


def _copy(series: FrameSeries, writer: FrameWriter, source: Path, progress: Callable[[int, int], None] | None) -> None:
    frame_bytes = max(1, int(np.prod(series.frame_shape)) * series.frames.dtype.itemsize)
    size = max(1, int(min(BATCH_BYTES, room() / 8) // frame_bytes))  # frames, their pyramids, and both compressed
    starts = range(0, series.n_frames, size)
    for start, batch in read_ahead(lambda start: _read(series, start, start + size, source), starts):
        for k, frame in enumerate(batch, start):
            if frame.dtype.kind == "f" and k not in series.excluded and not np.isfinite(frame).any():
                raise ReadError(
                    f"{source}: frame {k} holds no finite value; list it under excluded_frames in session.yaml"
                )
        writer.write_batch(start, batch)
        for k in range(start, start + len(batch)):
            if progress is not None:
                progress(k + 1, series.n_frames)


def _read(series: FrameSeries, start: int, stop: int, source: Path) -> np.ndarray:
    try:
        with quiet():
            return np.asarray(series.frames[start:stop])
    except AtomDiffuserError:
        raise
    except Exception as error:
        raise ReadError(
            f"{source}: frames {start}…{min(stop, series.n_frames) - 1} cannot be read ({error}); "
            "copy the file again from the microscope"
        ) from error
