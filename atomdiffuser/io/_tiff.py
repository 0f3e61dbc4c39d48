"""TIFF: pixels page by page through tifffile, calibrations through RosettaSciIO and ImageJ's own tags."""

from __future__ import annotations

import codecs
import gc
import lzma
import math
import struct
import threading
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atomdiffuser.errors import ReadError
from atomdiffuser.io._declared_size import MOST_COMPRESSION, check_declared
from atomdiffuser.io._mapped_metadata import acquisition_fields, mapped_metadata
from atomdiffuser.io._raw_signal import Axis, RawSignal, clean_unit, dig, length_nm, positive, time_s

_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_ENGINES = {8: zlib.decompressobj, 32946: zlib.decompressobj, 34925: lzma.LZMADecompressor}  # by TIFF's numbers
SPARE_BYTES, PIECE_BYTES = 4096, 2**20
MOST_CHANNELS = 7
"""ImageJ's limit; some writers put every stack along its channel axis."""


def read_tiff(path: Path) -> list[RawSignal]:
    """Every image series of the file."""
    import tifffile
    from rsciio.tiff import file_reader

    _check_whole(path)
    _check_shapes(path)
    found = file_reader(str(path), lazy=True)
    with tifffile.TiffFile(path) as file:
        imagej = file.imagej_metadata or {} if file.is_imagej else {}
        kinds = [(s.axes, s.shape, s.dtype) for s in file.series]
    for f in found:
        del f["data"]
    gc.collect()  # the reader leaves its file to the garbage collector, which would warn at some later time
    if len(found) != len(kinds):
        found = [{} for _ in kinds]
    return [_signal(path, k, *kind, f, imagej) for k, (kind, f) in enumerate(zip(kinds, found, strict=True))]


def _check_whole(path: Path) -> None:
    """Raise ReadError when the chain of pages leads out of the file: readers would end it there without a word."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        count, entry, pointer = ("Q", 20, "Q") if big else ("H", 12, "I")
        seen: set[int] = set()
        try:
            (offset,) = struct.unpack(order + pointer, head[8:16] if big else head[4:8])
            while offset:
                if offset >= size or offset in seen:
                    raise struct.error
                seen.add(offset)
                file.seek(offset)
                (entries,) = struct.unpack(order + count, file.read(struct.calcsize(count)))
                if entries * entry > size:
                    raise struct.error
                for tag in struct.iter_unpack(order + f"HH{pointer}{pointer}", file.read(entries * entry)):
                    if tag[2] * _ITEM_BYTES.get(tag[1], 1) > size:
                        raise ReadError(
                            f"{path}: truncated or damaged (tag {tag[0]} claims {tag[2]} values); copy it again"
                        )
                (offset,) = struct.unpack(order + pointer, file.read(struct.calcsize(pointer)))
        except (struct.error, OSError, OverflowError):
            raise ReadError(
                f"{path}: truncated or damaged (page {len(seen) + 1} of it is missing); copy it again"
            ) from None


def _check_shapes(path: Path) -> None:
    """Raise ReadError where the pixels of a series cannot be in the file: they may be allocated at once."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        for series in file.series:
            if series.dtype is not None:
                ratio = 1 if series.keyframe.compression == 1 else MOST_COMPRESSION
                check_declared(path, series.shape, series.dtype, ratio=ratio)


def _signal(
    path: Path,
    index: int,
    axes: str,
    shape: tuple[int, ...],
    dtype: Any,
    found: Mapping[str, Any],
    imagej: Mapping[str, Any],
) -> RawSignal:
    import dask.array as da

    colour = "S" in axes and shape[axes.index("S")] in (3, 4)
    pixels = _Pages(path, index, shape, np.dtype(dtype))
    chunks = (1,) * (len(shape) - 2) + tuple(shape[-2:]) if len(shape) > 2 and not colour else tuple(shape)
    data = da.from_array(pixels, chunks=chunks, name=False, lock=pixels.lock)
    stated = [Axis(str(a["name"]), clean_unit(a.get("units")), float(a["scale"])) for a in found.get("axes", ())]
    if len(stated) != len(shape):
        stated = [Axis(code, "", 1.0) for code in axes]
    obstacle = ""
    if imagej and len(shape) == 3:
        stated, obstacle = _imagej_axes(imagej, stated, axes, found.get("original_metadata", {}))
    metadata = mapped_metadata(found)
    fields = acquisition_fields(metadata)
    return RawSignal(
        title=str(dig(metadata, "General", "title") or path.stem),
        data=data,
        axes=tuple(Axis("rgb", "", 1.0) if colour and code == "S" else a for a, code in zip(stated, axes, strict=True)),
        fields=fields,
        obstacle="a colour picture" if colour else obstacle,
        original_metadata={**found.get("original_metadata", {}), **({"imagej": dict(imagej)} if imagej else {})},
    )


def _imagej_axes(
    imagej: Mapping[str, Any], stated: list[Axis], axes: str, tags: Mapping[str, Any]
) -> tuple[list[Axis], str]:
    """Axes from ImageJ's tags: frame interval and a pixel size in any unit; and what speaks against a time series."""
    unit = clean_unit(_unescape(str(imagej.get("unit", ""))))
    sizes = [_per_pixel(tags.get(name)) for name in ("YResolution", "XResolution")]
    step = positive(imagej.get("finterval"), time_s(clean_unit(imagej.get("tunit", "s"))) or 1.0)
    rate = positive(imagej.get("fps"))
    step = step or (1 / rate if rate else None)
    spatial = [
        Axis(name, unit, size) if size and length_nm(unit) else old
        for name, size, old in zip(("y", "x"), sizes, stated[1:], strict=True)
    ]
    stack = Axis("time", "s", step) if step else Axis("time", "", 1.0)
    if axes[0] == "C" and int(imagej.get("channels", 1)) <= MOST_CHANNELS:
        return [stack, *spatial], "several channels of one image (an ImageJ hyperstack)"
    spacing = positive(imagej.get("spacing"))
    if axes[0] == "Z" and spacing not in (None, 1.0) and length_nm(unit) and not step:
        return [stack, *spatial], f"a z stack (ImageJ states slices {spacing:g} {unit} apart)"
    return [stack, *spatial], ""


def _unescape(text: str) -> str:
    return codecs.decode(text, "unicode_escape") if "\\u" in text else text


def _per_pixel(resolution: Any) -> float | None:
    try:
        pixels, units = resolution
        return positive(units / pixels)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


class _Pages:
    """Pixels of one TIFF series as an array that reads the pages asked for; its file closes with it."""

    def __init__(self, path: Path, series: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.series, self.shape, self.dtype, self.ndim = path, series, tuple(shape), dtype, len(shape)
        self.lock = threading.Lock()
        self._open: Any = None

    def __getitem__(self, index: Any) -> np.ndarray:
        series = self._series()
        index = index if isinstance(index, tuple) else (index,)
        pages = series.pages
        one_a_frame = self.ndim == 3 and len(pages) == self.shape[0] and pages[0].shape == self.shape[1:]
        if not one_a_frame:
            return self._whole(series)[index]
        chosen = np.arange(self.shape[0])[index[0]]
        for k in np.atleast_1d(chosen):
            self._check_segments(pages[int(k)])
        stack = np.stack([pages[int(k)].asarray() for k in np.atleast_1d(chosen)])
        stack = stack if np.ndim(chosen) else stack[0]
        return stack[(..., *index[1:])]

    def _series(self) -> Any:
        import tifffile

        if self._open is None:
            file = tifffile.TiffFile(self.path)
            weakref.finalize(self, file.close)
            self._open = file.series[self.series]
        return self._open

    def _whole(self, series: Any) -> np.ndarray:
        import tifffile

        try:  # contiguous, as ImageJ writes: only what is indexed gets read
            return tifffile.memmap(self.path, series=self.series, mode="r")
        except ValueError:
            for page in series.pages:
                self._check_segments(page)
            return series.asarray()

    def _check_segments(self, page: Any) -> None:
        """Raise ReadError where a strip or tile of a page is not in the file, or cannot be as large."""
        if page is None:
            return
        size = self.path.stat().st_size
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            if (end := offset + count) > size:
                raise ReadError(f"{self.path}: truncated or damaged (a strip of it ends at byte {end}); copy it again")
        check_declared(self.path, page.chunks, page.dtype)
        check_declared(self.path, (page.nbytes,), np.uint8, ratio=1 if page.compression == 1 else MOST_COMPRESSION)
        if engine := _ENGINES.get(int(page.compression)):
            most = math.prod(page.chunks) * page.dtype.itemsize + SPARE_BYTES
            with self.path.open("rb") as file:
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
                    file.seek(offset)
                    check_inflated(self.path, file.read(count), engine(), most)


def check_inflated(path: Path, data: bytes, engine: Any, most: int) -> None:
    """Raise ReadError where data that `engine` decompresses come to more than `most` bytes.

    tifffile would take all of them.
    """
    left, total = data, 0
    try:
        while (left or not getattr(engine, "needs_input", True)) and not engine.eof:
            total += len(engine.decompress(left, PIECE_BYTES))
            if total > most:
                raise ReadError(
                    f"{path}: a strip of it holds more than the {most - SPARE_BYTES} bytes of its pixels (damaged, or "
                    "made to use up the memory); copy it again from the microscope"
                )
            left = getattr(engine, "unconsumed_tail", b"")
    except (zlib.error, lzma.LZMAError):
        return  # reading it will say so
