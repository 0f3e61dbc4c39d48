"""TIA SER files and the EMI files beside them.

RosettaSciIO reads a whole SER file into memory even when asked to be lazy, so frames are read here one by one.
Layout: C. Boothroyd, "Emispec (.ser) file format", https://www.er-c.org/cbb/info/TIAformat
"""

from __future__ import annotations

import re
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from atomdiffuser.errors import ReadError
from atomdiffuser.io._raw_signal import Axis, RawSignal, dig, number, positive

_IMAGES, _SPECTRA = 0x4122, 0x4120
_DTYPES = {1: "u1", 2: "<u2", 3: "<u4", 4: "i1", 5: "<i2", 6: "<i4", 7: "<f4", 8: "<f8", 9: "<c8", 10: "<c16"}
_ELEMENT_HEADER_BYTES = 50
_POSITION_TAG = 0x4142


def ser_files_of(emi: Path) -> list[Path]:
    """The SER files that belong to an EMI file, `<stem>_<n>.ser`, in order of n."""
    pattern = re.compile(re.escape(emi.stem) + r"_(\d+)\.ser", re.IGNORECASE)
    found = [(int(m.group(1)), p) for p in emi.parent.iterdir() if (m := pattern.fullmatch(p.name))]
    return [p for _, p in sorted(found)]


def emi_file_of(ser: Path) -> Path | None:
    """The EMI file that a SER file belongs to, if it is there."""
    match = re.fullmatch(r"(.+)_\d+", ser.stem)
    if match is None:
        return None
    return next((p for s in (".emi", ".EMI") if (p := ser.with_name(match.group(1) + s)).is_file()), None)


def read_emi(path: Path) -> list[RawSignal]:
    """Every SER file of an EMI file, with the metadata of the latter."""
    sers = ser_files_of(path)
    if not sers:
        raise ReadError(f"{path}: its data files ({path.stem}_1.ser, …) are missing; copy them into the same folder")
    objects = _emi_objects(path)
    return [_read_ser(p, objects.get(_object_number(p), {})) for p in sers]


def read_ser(path: Path) -> list[RawSignal]:
    """A SER file, with the metadata of its EMI file when that is there."""
    emi = emi_file_of(path)
    if emi is not None:
        return [_read_ser(path, _emi_objects(emi).get(_object_number(path), {}))]
    return [_read_ser(path, {})]


def _read_ser(path: Path, info: dict[str, Any]) -> RawSignal:
    import dask.array as da

    size = path.stat().st_size
    with path.open("rb") as file:
        kind, offsets, tags, scan_axes = _series_header(file, path, size)
        n = len(offsets)
        if kind == _SPECTRA:
            axes = (Axis("energy", "eV", 1.0),)
            return RawSignal(path.stem, da.zeros(1, dtype=np.uint16), axes, is_decoded=False)
        file.seek(offsets[0])
        _, dx, _, _, dy, _, code, nx, ny = struct.unpack("<ddiddihii", file.read(_ELEMENT_HEADER_BYTES))
        if code not in _DTYPES:
            raise ReadError(f"{path}: SER data type {code} is unknown; export the series as TIFF or MRC")
        dtype = np.dtype(_DTYPES[code])
        if nx <= 0 or ny <= 0 or max(offsets) + _ELEMENT_HEADER_BYTES + nx * ny * dtype.itemsize > size:
            raise ReadError(f"{path}: shorter than its header says (truncated); copy it again from the microscope")
        times, positions = _tags(file, tags)
    frames = _SerFrames(path, [o + _ELEMENT_HEADER_BYTES for o in offsets], (ny, nx), dtype)
    data = da.from_array(frames, chunks=(1, ny, nx), name=False, asarray=True)
    conditions = dig(info, "ExperimentalDescription") or {}
    mode = str(conditions.get("Mode", "STEM"))
    unit = "1/m" if "Diffraction" in mode and "STEM" not in mode else "m"
    step = positive(dig(info, "AcquireInfo", "FrameTime"))
    scanned = "a spectrum image or diffraction map (each frame belongs to another probe position)"
    return RawSignal(
        title=str(dig(info, "AcquireInfo", "CameraNamePath") or path.stem),
        data=data if n > 1 else data[0],
        axes=(
            Axis("time", "s" if step else "", step or 1.0),
            Axis("y", unit, dy),
            Axis("x", unit, dx),
        )[0 if n > 1 else 1 :],
        fields={
            "dwell_s": positive(dig(info, "AcquireInfo", "DwellTimePath")),
            "beam_energy_kV": positive(conditions.get("High tension [kV]"))
            or positive(dig(info, "ExperimentalConditions", "MicroscopeConditions", "AcceleratingVoltage"), 1e-3),
            "instrument": str(conditions.get("Microscope", "")).removeprefix("Microscope ") or None,
            "acquired_at": None if times is None else datetime.fromtimestamp(times[0], UTC).isoformat(),
            "scan_rotation_deg": number(conditions.get("Stem rotation [deg]")),
        },
        starts_s=None if times is None else np.array(times, dtype=float),
        tilts_deg=() if (tilt := number(conditions.get("Stage A [deg]"))) is None else (tilt,),
        obstacle=scanned if scan_axes or positions > 1 else "",
        original_metadata={
            "ObjectInfo": info,
            "ser": {"elements": n, "delta_x_m": dx, "delta_y_m": dy, "tag_times": times},
        },
    )


def _series_header(file: Any, path: Path, size: int) -> tuple[int, list[int], list[int], int]:
    """Kind of data, offsets of the valid elements and of their tags, number of axes that the probe was moved along."""
    try:
        _, _, version, kind, _, total, valid = struct.unpack("<hhhiiii", file.read(22))
        wide = version > 528  # 64-bit offsets
        array_offset, dimensions = struct.unpack("<qi" if wide else "<ii", file.read(12 if wide else 8))
        scan_axes = sum(_is_scan_axis(file) for _ in range(dimensions))
        if not 0 <= valid <= total or 2 * total * (8 if wide else 4) > size:
            raise ReadError(f"{path}: claims {total} frames (truncated or damaged); copy it again from the microscope")
        file.seek(array_offset)
        raw = np.frombuffer(file.read(2 * total * (8 if wide else 4)), "<i8" if wide else "<i4")
    except (struct.error, ValueError, OSError):
        raw, total, valid = np.empty(0), 1, 1
    if valid < 1:
        raise ReadError(f"{path}: holds no valid frames; was the acquisition stopped before the first?")
    if len(raw) < 2 * total or valid > total:
        raise ReadError(f"{path}: shorter than its header says (truncated); copy it again from the microscope")
    return kind, raw[:valid].tolist(), raw[total : total + valid].tolist(), scan_axes


def _is_scan_axis(file: Any) -> bool:
    size, _, _, _, length = struct.unpack("<iddii", file.read(28))
    file.seek(max(length, 0), 1)
    (length,) = struct.unpack("<i", file.read(4))
    unit = file.read(len(b"meters")) if length == len(b"meters") else b""
    file.seek(max(length, 0) - len(unit), 1)
    return size > 1 and unit == b"meters"


def _tags(file: Any, offsets: list[int]) -> tuple[list[int] | None, int]:
    """Time of each element [s since 1970] and how many different probe positions they have."""
    times, positions = [], set()
    for offset in offsets:
        file.seek(offset)
        data = file.read(22)
        if offset <= 0 or len(data) < 6:
            return None, 0
        kind, seconds = struct.unpack("<hi" if len(data) < 8 else "<hxxi", data[: 6 if len(data) < 8 else 8])
        times.append(seconds)
        if kind == _POSITION_TAG and len(data) >= 22:
            positions.add(data[6:22])
    return times, len(positions)


class _SerFrames:
    """Frames of a SER file as an array that reads what is asked for."""

    def __init__(self, path: Path, offsets: list[int], shape: tuple[int, int], dtype: np.dtype) -> None:
        self.path, self.offsets = path, offsets
        self.shape, self.dtype, self.ndim = (len(offsets), *shape), dtype, 3

    def __getitem__(self, index: Any) -> np.ndarray:
        frames, *rest = index if isinstance(index, tuple) else (index,)
        chosen = np.arange(self.shape[0])[frames]
        stack = np.stack([self._frame(k) for k in np.atleast_1d(chosen)])
        return (stack if np.ndim(chosen) else stack[0])[(..., *rest)] if rest else stack

    def _frame(self, k: int) -> np.ndarray:
        count = self.shape[1] * self.shape[2]
        flat = np.fromfile(self.path, self.dtype, count, offset=self.offsets[k])
        if flat.size < count:
            raise ReadError(f"{self.path}: frame {k} is cut short; copy the file again from the microscope")
        return flat.reshape(self.shape[1:])[::-1]  # rows are stored from the bottom up


def _object_number(ser: Path) -> int:
    return int(ser.stem.rsplit("_", 1)[1])


def _emi_objects(path: Path) -> dict[int, dict[str, Any]]:
    """The metadata of the objects in an EMI file, numbered as its SER files are; an unreadable one is empty."""
    objects = {}
    for k, block in enumerate(re.findall(rb"<ObjectInfo>.*?</ObjectInfo>", path.read_bytes(), re.DOTALL), start=1):
        try:
            objects[k] = _tree(ElementTree.fromstring(block.decode("utf-8", "replace")))
        except ElementTree.ParseError:
            objects[k] = {}
    return objects


def _tree(element: ElementTree.Element) -> dict[str, Any]:
    """XML as nested values; the microscope's own list of labels becomes `label [unit]: value`."""
    tree: dict[str, Any] = {}
    for child in element:
        label = child.findtext("Label")
        if label is not None:
            unit = (child.findtext("Unit") or "").strip()
            tree[f"{label} [{unit}]" if unit else label] = (child.findtext("Value") or "").strip()
        elif child.tag == "Root":
            tree.update(_tree(child))
        else:
            tree[child.tag] = _tree(child) if len(child) else (child.text or "").strip()
    return tree
