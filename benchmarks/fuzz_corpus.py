"""Small valid files of every raw format, which fuzzing starts from; where in them lengths and offsets stand."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

READERS = ("DM", "EMD", "MRC", "TIFF", "SER")
LARGEST_REAL_BYTES = 250_000
MADE_UP_TIMES = 3
"""How often a made-up file is taken for one real one, which takes ten times as long to read."""

_REAL = {"DM": (".dm3", ".dm4"), "EMD": (".emd",), "MRC": (".mrc",), "TIFF": (".tif",), "SER": (".ser",)}
Field = tuple[int, int]
"""Offset and width [bytes] of a number that says how much or where."""


def write_corpus(folder: Path, real: Path | None = None) -> dict[str, list[Path]]:
    """Write the made-up files of each reader into `folder`; small real ones of `real` are added as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    stack = np.random.default_rng(7).integers(0, 4000, (3, 10, 14)).astype("u2")
    found = {reader: [] for reader in READERS}
    for reader, name, write in _made_up():
        path = folder / name
        write(path, stack)
        found[reader] += [path] * MADE_UP_TIMES
    for path in sorted(real.iterdir()) if real is not None else ():
        for reader, suffixes in _REAL.items():
            if path.suffix in suffixes and path.stat().st_size <= LARGEST_REAL_BYTES:
                found[reader].append(path)
    return found


def fields_of(reader: str, data: bytes) -> list[Field]:
    """Where the file's own lengths, shapes, types and offsets stand."""
    if reader == "MRC":
        return [(4 * word, 4) for word in (*range(10), 23, 24, 26, 27, 38, 39, 53)]
    if reader == "SER":
        return _ser_fields(data)
    if reader == "TIFF":
        return _tiff_fields(data)
    if reader == "DM":
        marks = [m.end() for m in re.finditer(b"%%%%", data)]
        wide = 8 if data[3] == 4 else 4
        return [(4, wide), *((m + k * wide, wide) for m in marks for k in (-1, 0, 1, 2, 3) if m + (k + 1) * wide > 0)]
    fields = [(offset, 8) for offset in range(8, 96, 4)]
    for sign, width in ((b"TREE", 48), (b"SNOD", 64), (b"HEAP", 32), (b"OHDR", 64), (b"GCOL", 32), (b"FRHP", 96)):
        fields += [(m.start() + k, w) for m in re.finditer(sign, data) for k in range(4, width, 2) for w in (2, 8)]
    # version 1 object headers carry no signature: their messages lie between the other structures
    return fields + [(k, 8) for k in range(96, min(len(data), 6000), 8)]


def write_mrc(path: Path, stack: np.ndarray, *, order: str = "<", mode: int = 6, extended: bytes = b"") -> None:
    """MRC2014 of unsigned 16-bit frames."""
    nz, ny, nx = stack.shape
    words = np.zeros(256, f"{order}i4")
    words[:4], words[7:10], words[16:19], words[27] = (nx, ny, nz, mode), (nx, ny, nz), (1, 2, 3), 20140
    words[10:13] = np.array([nx * 0.2, ny * 0.2, 0], f"{order}f4").view(f"{order}i4")
    words[23] = len(extended)
    header = bytearray(words.tobytes())
    header[208:216] = b"MAP " + (b"DD\0\0" if order == "<" else b"\x11\x11\0\0")
    path.write_bytes(bytes(header) + extended + stack.astype(stack.dtype.newbyteorder(order)).tobytes())


def write_ser(path: Path, stack: np.ndarray, *, wide: bool = False) -> None:
    """TIA series of unsigned 16-bit frames, 10 s apart; `wide` with 64-bit offsets."""
    n, ny, nx = stack.shape
    head = struct.pack("<hhhiiii", 0x4949, 0x0197, 0x0220 if wide else 0x0210, 0x4122, 0x4152, n, n)
    dimension = struct.pack("<iddii", n, 0.0, 1.0, 0, 6) + b"Number" + struct.pack("<i", 0)
    pointer, width = ("q", 8) if wide else ("i", 4)
    array_offset = len(head) + width + 4 + len(dimension)
    element = 50 + ny * nx * 2
    offsets = [array_offset + 2 * width * n + k * (element + 8) for k in range(n)]
    data = head + struct.pack(f"<{pointer}i", array_offset, 1) + dimension
    data += struct.pack(f"<{n}{pointer}", *offsets) + struct.pack(f"<{n}{pointer}", *(o + element for o in offsets))
    for k, frame in enumerate(stack):
        data += struct.pack("<ddiddihii", 0, 2e-11, 0, 0, 2e-11, 0, 2, nx, ny)
        data += frame[::-1].astype("<u2").tobytes() + struct.pack("<hhi", 0x4152, 0, 10 * k)
    path.write_bytes(data)


def write_ncem(path: Path, stack: np.ndarray) -> None:
    """Berkeley EMD with a compressed stack."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group("data/stack")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", data=stack, chunks=(1, *stack.shape[1:]), compression="gzip")
        for k, (name, unit) in enumerate((("time", "s"), ("y", "nm"), ("x", "nm"))):
            dimension = group.create_dataset(f"dim{k + 1}", data=np.arange(stack.shape[k], dtype=float))
            dimension.attrs["name"], dimension.attrs["units"] = name, unit


def _made_up() -> list[tuple[str, str, Callable[[Path, np.ndarray], None]]]:
    import tifffile

    from atomdiffuser.io.raw_writers import write_dm4, write_velox_emd

    known = dict(
        frame_time_s=1.5, pixel_size_nm=(0.02, 0.03), beam_energy_kV=200.0, probe_current_pA=30.0, dwell_s=2e-6
    )
    grey = dict(photometric="minisblack", metadata=None)
    return [
        ("DM", "a.dm4", lambda p, s: write_dm4(p, s, **known)),
        ("DM", "float.dm4", lambda p, s: write_dm4(p, s.astype("f4"), **known)),
        ("EMD", "velox.emd", lambda p, s: write_velox_emd(p, s, **known)),
        ("EMD", "ncem.emd", write_ncem),
        ("MRC", "a.mrc", write_mrc),
        ("MRC", "big.mrc", lambda p, s: write_mrc(p, s, order=">", extended=bytes(3 * 128))),
        ("MRC", "float.mrc", lambda p, s: write_mrc(p, s.astype("f4"), mode=2)),
        ("TIFF", "imagej.tif", lambda p, s: tifffile.imwrite(p, s, imagej=True, metadata={"axes": "TYX"})),
        ("TIFF", "pages.tif", lambda p, s: tifffile.imwrite(p, s, compression="zlib", **grey)),
        ("TIFF", "big.tif", lambda p, s: tifffile.imwrite(p, s, bigtiff=True, byteorder=">", tile=(16, 16), **grey)),
        ("SER", "a_1.ser", write_ser),
        ("SER", "wide_1.ser", lambda p, s: write_ser(p, s, wide=True)),
    ]


def _ser_fields(data: bytes) -> list[Field]:
    version, total = struct.unpack("<h", data[4:6])[0], struct.unpack("<i", data[14:18])[0]
    wide = version > 528
    pointer = 8 if wide else 4
    array_offset = int.from_bytes(data[22 : 22 + pointer], "little")
    fields = [(4, 2), (6, 4), (10, 4), (14, 4), (18, 4), (22, pointer), (22 + pointer, 4), (26 + pointer, 4)]
    fields += [(array_offset + k * pointer, pointer) for k in range(2 * total)]
    for k in range(total):
        at = array_offset + k * pointer
        first = int.from_bytes(data[at : at + pointer], "little")
        fields += [(first + 40, 2), (first + 42, 4), (first + 46, 4)]
    return fields


def _tiff_fields(data: bytes) -> list[Field]:
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    count, entry, pointer = ("Q", 20, "Q") if big else ("H", 12, "I")
    width = struct.calcsize(pointer)
    first = 8 if big else 4
    fields, offset = [(first, width)], struct.unpack_from(order + pointer, data, first)[0]
    while offset:
        fields.append((offset, struct.calcsize(count)))
        (entries,) = struct.unpack_from(order + count, data, offset)
        start = offset + struct.calcsize(count)
        for k in range(entries):
            at = start + k * entry
            fields += [(at, 2), (at + 2, 2), (at + 4, width), (at + 4 + width, width)]
        fields.append((start + entries * entry, width))
        (offset,) = struct.unpack_from(order + pointer, data, start + entries * entry)
    return fields
