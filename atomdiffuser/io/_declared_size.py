"""What a raw file says of its own size against what it can hold: forged and damaged headers are refused before reading.

Every allocation that a reader makes follows a number in the file. These checks keep such numbers within what the file's
bytes can stand for, so that memory and disk stay bounded whatever a header claims.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atomdiffuser.errors import ReadError

MOST_COMPRESSION = 2000
"""Bytes that one stored byte can stand for. DEFLATE ends at 1032, and recorded noise at about 10; more is a bomb."""

LARGEST_FRAME_BYTES = 2**30
"""One frame has to fit into memory several times: 16384 × 16384 pixels of 4 bytes."""

SMALL_BYTES = 2**20
"""What is always allowed: values that were declared and never written take no room in an HDF5 file."""

_ZARR_METADATA = (".zarray", ".zmetadata", "zarr.json")
_PICKLE = re.compile(rb'"(id|name)"\s*:\s*"(numcodecs\.)?pickle"', re.IGNORECASE)


def stored_bytes(path: Path) -> int:
    """Size of a file, or of everything in a folder store."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size


def check_declared(path: Path, shape: Sequence[int], dtype: Any, *, ratio: int = MOST_COMPRESSION) -> None:
    """Raise ReadError where data of this shape and type cannot come from the file, or a frame is too large to handle.

    `ratio` is how many bytes a stored one can stand for: 1 for formats without compression.
    """
    frame = math.prod(int(n) for n in shape[-2:]) * np.dtype(dtype).itemsize
    declared = math.prod(int(n) for n in shape) * np.dtype(dtype).itemsize
    if declared > max(SMALL_BYTES if ratio > 1 else 0, ratio * stored_bytes(path)):
        raise ReadError(
            f"{path}: its header claims {_readable(declared)} of data in a file of {_readable(stored_bytes(path))} "
            "(truncated, damaged or forged); copy it again from the microscope"
        )
    if frame > LARGEST_FRAME_BYTES and len(shape) >= 2:
        raise ReadError(
            f"{path}: a frame of {shape[-2]} × {shape[-1]} pixels takes {_readable(frame)}, more than the "
            f"{_readable(LARGEST_FRAME_BYTES)} that are handled; crop or bin it, if it is not a damaged header"
        )


def check_hdf5(path: Path) -> None:
    """Raise ReadError where a data set claims more than its storage can hold, or keeps its values in other files."""
    import h5py

    with h5py.File(path, "r") as file:
        for name, dataset in _datasets(path, file):
            declared = dataset.size * dataset.dtype.itemsize if dataset.shape is not None else 0
            chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize if dataset.chunks else 0
            if dataset.is_virtual or dataset.external:
                raise _elsewhere(path, name)
            if dataset.ndim == 3 and dataset.size == 0:
                raise ReadError(f"{path}: {name} holds no frames; was the acquisition stopped before the first?")
            if chunk > LARGEST_FRAME_BYTES:
                raise ReadError(
                    f"{path}: {name} is stored in blocks of {_readable(chunk)}, each unpacked as a whole, more "
                    f"than the {_readable(LARGEST_FRAME_BYTES)} that are handled; save it again in blocks of one frame"
                )
            stored = min(dataset.id.get_storage_size(), stored_bytes(path))
            if max(declared, chunk) > max(SMALL_BYTES, MOST_COMPRESSION * stored):
                raise ReadError(
                    f"{path}: {name} claims {_readable(max(declared, chunk))} but {_readable(stored)} of it are stored "
                    "(stopped before it was written, damaged or forged); copy it again from the microscope"
                )


def check_zarr(path: Path) -> None:
    """Raise ReadError for a Zarr folder that would run code as it is read (pickled objects), or links out of itself."""
    root = path.resolve()
    for member in path.rglob("*"):
        if not member.resolve().is_relative_to(root):
            raise _elsewhere(path, member.relative_to(path).as_posix())
        if member.name in _ZARR_METADATA and _PICKLE.search(member.read_bytes()):
            raise ReadError(
                f"{path}: {member.relative_to(path).as_posix()} holds pickled Python objects, which could run any code "
                "and are never read; save it again without object arrays"
            )


def _datasets(path: Path, group: Any) -> Iterator[tuple[str, Any]]:
    """Every data set below a group, hard links only and each object once."""
    import h5py

    waiting, seen = [group], set()
    while waiting:
        parent = waiting.pop()
        for name in parent:
            where = f"{parent.name.rstrip('/')}/{name}"
            if isinstance(parent.get(name, getlink=True), h5py.ExternalLink):
                raise _elsewhere(path, where)
            found = parent[name] if isinstance(parent.get(name, getlink=True), h5py.HardLink) else None
            if isinstance(found, h5py.Dataset):
                yield where, found
            elif isinstance(found, h5py.Group):
                address = h5py.h5o.get_info(found.id).addr
                if address not in seen:
                    seen.add(address)
                    waiting.append(found)


def _elsewhere(path: Path, name: str) -> ReadError:
    return ReadError(f"{path}: {name} is kept in another file, which is not read; save all of it in one file")


def _readable(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count = count / 1000
    raise AssertionError
