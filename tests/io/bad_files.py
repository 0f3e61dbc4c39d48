"""Raw files with something wrong, and the small valid ones that they are made from."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import tifffile

from atomdiffuser.io.raw_writers import write_dm4, write_velox_emd

CALIBRATION = dict(frame_time_s=1.5, pixel_size_nm=0.02, beam_energy_kV=200.0, probe_current_pA=30.0, dwell_s=2e-6)
STACK = np.random.default_rng(3).integers(0, 4000, (3, 12, 16)).astype("u2")
SUFFIXES = (".dm4", ".emd", ".mrc", ".ser", ".tif")


def write_valid(path: Path, stack: np.ndarray = STACK) -> None:
    """A time series in the format that the path's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".dm4":
        write_dm4(path, stack, **CALIBRATION)
    elif path.suffix == ".emd":
        write_velox_emd(path, stack, **CALIBRATION)
    elif path.suffix == ".mrc":
        write_mrc(path, stack)
    elif path.suffix == ".ser":
        write_ser(path, stack)
    else:
        tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "TYX"})


def write_mrc(path: Path, stack: np.ndarray, *, pixel_A: float = 0.2, words: dict[int, int] | None = None) -> None:
    """MRC2014; `words` replaces words of the header."""
    modes = {"int8": 0, "int16": 1, "float32": 2, "complex64": 4, "uint16": 6}
    head = np.zeros(256, "<i4")
    nz, ny, nx = stack.shape
    head[:4], head[7:10], head[16:19], head[27] = (nx, ny, nz, modes[stack.dtype.name]), (nx, ny, nz), (1, 2, 3), 20140
    head[10:13] = np.array([nx * pixel_A, ny * pixel_A, 0], "<f4").view("<i4")
    for word, value in (words or {}).items():
        head[word] = value
    data = bytearray(head.tobytes())
    data[208:216] = b"MAP DD\0\0"
    path.write_bytes(bytes(data) + stack.tobytes())


def write_ser(
    path: Path, stack: np.ndarray, *, total: int | None = None, code: int = 2, valid: int | None = None
) -> None:
    """TIA series; the arguments are what its header claims."""
    n, ny, nx = stack.shape
    head = struct.pack("<hhhiii", 0x4949, 0x0197, 0x0210, 0x4122, 0x4152, n if total is None else total)
    head += struct.pack("<i", n if valid is None else valid)
    dimension = struct.pack("<iddii", n, 0.0, 1.0, 0, 6) + b"Number" + struct.pack("<i", 0)
    at, element = len(head) + 8 + len(dimension), 50 + ny * nx * 2
    offsets = [at + 8 * n + k * (element + 8) for k in range(n)]
    data = head + struct.pack("<ii", at, 1) + dimension
    data += struct.pack(f"<{n}i", *offsets) + struct.pack(f"<{n}i", *(o + element for o in offsets))
    for k, frame in enumerate(stack):
        data += struct.pack("<ddiddihii", 0, 2e-11, 0, 0, 2e-11, 0, code, nx, ny) + frame[::-1].tobytes()
        data += struct.pack("<hhi", 0x4152, 0, 10 * k)
    path.write_bytes(data)


def write_ncem(path: Path, data: np.ndarray, *, step_nm: float = 0.02, **storage: object) -> None:
    """Berkeley EMD, its data set stored as `storage` says."""
    with h5py.File(path, "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group("data/stack")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", **(storage or {"data": data}))
        for k, (name, unit, step) in enumerate((("time", "s", 1.0), ("y", "nm", step_nm), ("x", "nm", step_nm))):
            dimension = group.create_dataset(f"dim{k + 1}", data=np.arange(data.shape[k]) * step)
            dimension.attrs["name"], dimension.attrs["units"] = name, unit


def cut(path: Path, place: str) -> None:
    """Truncate a valid file: in its `first bytes`, `header`, `metadata`, `pixels` or before its `last bytes`."""
    write_valid(path)
    data = path.read_bytes()
    first = STACK[0].tobytes() if path.suffix != ".ser" else STACK[0][::-1].tobytes()
    pixels = data.find(first[:32])
    if pixels < 0:  # Velox stores the frames interleaved
        pixels = data.find(np.ascontiguousarray(np.moveaxis(STACK, 0, -1)).tobytes()[:32])
    ends = {
        "first bytes": 5, "header": 40, "metadata": max(pixels // 2, 60), "pixels": pixels + STACK.nbytes // 2,
        "last bytes": len(data) - 3,
    }  # fmt: skip
    path.write_bytes(data[: ends[place]])


def replace_once(path: Path, pattern: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change the first place that matches in a file."""
    data = path.read_bytes()
    found = re.search(pattern, data, re.DOTALL)
    assert found, pattern
    new = change(found.group())
    path.write_bytes(data[: found.start()] + new + data[found.end() :])


def dm_of_tags(path: Path, body: bytes, count: int = 1) -> None:
    """A DM4 file of this root group."""
    path.write_bytes(struct.pack(">IqI", 4, len(body) + 10, 1) + struct.pack(">BBq", 1, 0, count) + body)


def dm_tag(name: bytes, info: tuple[int, ...], data: bytes = b"") -> bytes:
    """A DM4 tag with this description of its data."""
    head = struct.pack(">BH", 21, len(name)) + name + struct.pack(">q", 0)
    return head + b"%%%%" + struct.pack(f">{len(info) + 1}q", len(info), *info) + data


def tiff_with(path: Path, tag: int, value: int, stack: np.ndarray = STACK, **how: object) -> None:
    """A TIFF whose first page has another number in one tag."""
    tifffile.imwrite(path, stack, photometric="minisblack", metadata=None, **how)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value)
