"""MRC, NCEM EMD, HyperSpy and ZSpy files, through RosettaSciIO."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from atomdiffuser.errors import ReadError
from atomdiffuser.io._declared_size import check_hdf5, check_zarr
from atomdiffuser.io._mapped_metadata import acquisition_fields, mapped_metadata, stage_tilt_deg
from atomdiffuser.io._raw_signal import Axis, RawSignal, clean_unit, dig, in_order, number

_MRC_ITEM_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 6: 2, 12: 2}
_MRC_2014 = 20140
_IMOD_STAMP = 1146047817


def read_mrc(path: Path) -> list[RawSignal]:
    """The stack of an MRC file; a stack is taken for a time series unless its tilts say otherwise."""
    from rsciio.mrc import file_reader

    with path.open("rb") as file:
        header = file.read(1024)
    order = "<" if header[212:213] != b"\x11" else ">"
    words = np.frombuffer(header, f"{order}i4", 256)
    nx, ny, nz, mode, extended = (int(words[i]) for i in (0, 1, 2, 3, 23))
    if mode not in _MRC_ITEM_BYTES or min(nx, ny, nz) < 1 or extended < 0:
        raise ReadError(f"{path}: its MRC header is damaged ({nx} × {ny} × {nz} pixels, mode {mode}); copy it again")
    expected, size = 1024 + extended + nx * ny * nz * _MRC_ITEM_BYTES[mode], path.stat().st_size
    if size < expected:
        raise ReadError(
            f"{path}: truncated ({size} bytes, its header promises {expected}); copy it again from the microscope"
        )
    found = file_reader(str(path), lazy=True, endianness=order, chunks={0: 1})[0]
    data = found["data"]
    if order == ">":  # the reader turns the header's bytes, not those of the pixels
        data = data.view(data.dtype.newbyteorder(">"))
    if mode == 0 and _mrc_is_signed(words):
        data = data.view(np.int8)
    tilts = [number(t) for t in np.ravel(dig(found["original_metadata"], "fei_header", "a_tilt") or [])]
    signal = _from_rosettasciio(path, {**found, "data": data})
    return [_with_tilts(signal, [t for t in tilts if t is not None])]


def _mrc_is_signed(words: np.ndarray) -> bool:
    """Mode 0 holds signed bytes since MRC2014; IMOD marks which it wrote."""
    if int(words[38]) == _IMOD_STAMP:
        return bool(int(words[39]) & 1)
    return int(words[27]) >= _MRC_2014


def read_ncem(path: Path) -> list[RawSignal]:
    """Every data set of a Berkeley (NCEM) EMD file; which axis is time is decided by units and names."""
    from rsciio.emd import file_reader

    check_hdf5(path)
    return [in_order(_from_rosettasciio(path, d)) for d in file_reader(str(path), lazy=True)]


def read_hspy(path: Path) -> list[RawSignal]:
    """Every signal of a HyperSpy file."""
    from rsciio.hspy import file_reader

    check_hdf5(path)
    return [in_order(_from_rosettasciio(path, d)) for d in file_reader(str(path), lazy=True)]


def read_zspy(path: Path) -> list[RawSignal]:
    """Every signal of a ZSpy folder."""
    from rsciio.zspy import file_reader

    check_zarr(path)
    return [in_order(_from_rosettasciio(path, d)) for d in file_reader(str(path), lazy=True, mode="r")]


def _from_rosettasciio(path: Path, found: dict[str, Any]) -> RawSignal:
    metadata = mapped_metadata(found)
    title = str(dig(metadata, "General", "title") or "")
    return RawSignal(
        title=title if title not in ("", "__unnamed__") else path.stem,
        data=found["data"],
        axes=tuple(
            Axis(
                str(a.get("name") or ""),
                clean_unit(a.get("units")),
                float(a.get("scale", 1.0)),
                float(a.get("offset", 0)),
            )
            for a in found["axes"]
        ),
        fields=acquisition_fields(metadata),
        tilts_deg=stage_tilt_deg(metadata),
        original_metadata=found.get("original_metadata", {}),
    )


def _with_tilts(signal: RawSignal, tilts: list[float]) -> RawSignal:
    frames = signal.data.shape[0] if len(signal.data.shape) == 3 else 1
    return replace(signal, tilts_deg=tuple(tilts)) if len(tilts) >= frames > 1 else signal
