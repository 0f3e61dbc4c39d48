"""Frames ↔ one Zarr v3 store that is at once an OME-Zarr 0.5 image and a HyperSpy ZSpy file.

Layout of `frames.ome.zarr` (and `aligned.ome.zarr`)::

    zarr.json                            ome.multiscales, ZSpy version, `atomdiffuser`: acquisition, times, provenance
    Experiments/frames/data              (t, y, x), native dtype, one chunk a frame; over 1,000, some in a file (shard)
    Experiments/frames/pyramid/<level>   block means 2, 4, … times coarser, for viewers
    Experiments/frames/axis-<i>, metadata, original_metadata     what HyperSpy expects
    <name>                               further (y, x) arrays, such as `mean` and `count`

`hs.load` takes a folder only when its name ends in .zspy, viewers want .zarr: a symbolic link gives the store both
names.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from atomdiffuser._version import __version__
from atomdiffuser.errors import ShapeError, StoreError
from atomdiffuser.io.remote import Place, for_zarr, location
from atomdiffuser.io.shards import ShardWriter, files_of, frames_a_shard
from atomdiffuser.series import Acquisition, FrameSeries

EXPERIMENT = "Experiments/frames"
ROOT_KEY = "atomdiffuser"
ZSPY_VERSION = "3.3"
SMALLEST_PYRAMID_SIDE_PX = 32
LARGEST_METADATA_LIST = 4096
UNIFORM_TIMES_RTOL = 1e-6
RESERVED_NAMES = ("Experiments",)


class FrameWriter:
    """Takes frames one by one; made by `create_frames`."""

    def __init__(self, root: zarr.Group, levels: list[zarr.Array], compression_level: int) -> None:
        self._root, self._levels, self._compression_level = root, levels, compression_level
        self._files = [ShardWriter(array) for array in levels]
        self._written = np.zeros(levels[0].shape[0], dtype=bool)

    def write(self, index: int, frame: np.ndarray) -> None:
        """Store one (y, x) frame and its pyramid."""
        self.write_batch(index, np.asarray(frame)[None])

    def write_batch(self, first: int, frames: np.ndarray) -> None:
        """Store (n, y, x) frames that follow each other, and their pyramids; faster than one by one."""
        target, stop = self._levels[0], first + len(frames)
        if frames.shape[1:] != target.shape[1:]:
            raise ShapeError(f"frame {first} has shape {frames.shape[1:]}, expected {target.shape[1:]}")
        if not 0 <= first < stop <= target.shape[0]:
            outside = first if not 0 <= first < target.shape[0] else stop - 1
            raise ShapeError(f"frame {outside} is outside 0…{target.shape[0] - 1}")
        if not np.can_cast(frames.dtype, target.dtype, "same_kind"):
            raise ShapeError(f"frame {first} is {frames.dtype}, the store holds {target.dtype}")
        self._files[0].write(first, frames)
        for level, array in enumerate(self._levels[1:], 1):
            means = np.empty((len(frames), *array.shape[1:]), array.dtype)
            for k, frame in enumerate(frames):  # one at a time stays in the processor's cache
                means[k] = block_mean(frame, 2**level)
            self._files[level].write(first, means)
        self._written[first:stop] = True

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Store a further array beside the frames, such as the mean of the aligned series."""
        if name in RESERVED_NAMES or "/" in name:
            raise StoreError(f"an array cannot be called {name!r} in a frame store")
        array = np.asarray(array)
        write_array(self._root, name, array, compressors(self._compression_level, array.dtype))

    def finish(self) -> None:
        """Write the files that frames were still waiting for."""
        for files in self._files:
            files.finish()

    def missing(self) -> list[int]:
        """Frames that have not been written yet."""
        return np.flatnonzero(~self._written).tolist()


@contextmanager
def create_frames(
    path: str | Path,
    *,
    n_frames: int,
    frame_shape: tuple[int, int],
    dtype: Any,
    times_s: np.ndarray | None,
    acquisition: Acquisition,
    name: str,
    excluded: tuple[int, ...] = (),
    attributes: Mapping[str, Any] | None = None,
    original_metadata: Mapping[str, Any] | None = None,
    pyramid_levels: int = 2,
    compression_level: int = 1,
    origin_px: tuple[int, int] = (0, 0),
) -> Iterator[FrameWriter]:
    """Write a frame store; it appears under `path`, whole, when the `with` block ends without an error.

    Parameters
    ----------
    path
        `<stem>.ome.zarr`; a link `<stem>.zspy` is put beside it. An existing store is replaced.
    times_s
        (t,) start of each frame [s], or None. Viewers get the mean step, the exact times stay in the attributes.
    acquisition
        Calibration; axes are in pixels while the pixel size is unknown.
    attributes
        Provenance and further values for the root's `atomdiffuser` attributes (see `read_attributes`).
    original_metadata
        The raw file's metadata tree; long arrays in it are dropped.
    pyramid_levels
        Halved copies at most; levels smaller than a thumbnail are left out.
    compression_level
        See `compressors`.
    origin_px
        Where the first pixel lies on the grid of the raw frames (y, x), so that viewers put both on top of each other.
    """
    path = Path(path)
    dtype = native_dtype(dtype)
    times = None if times_s is None else np.asarray(times_s, dtype=float)
    if times is not None and times.shape != (n_frames,):
        raise ShapeError(f"{n_frames} frames but times of shape {times.shape}")
    step_s = time_step(times, acquisition.frame_time_s)
    codecs = compressors(compression_level, dtype)
    with replacing_folder(path) as partial:
        root = zarr.open_group(partial, mode="w", zarr_format=3)
        shapes = [(n_frames, *frame_shape)]
        for level in range(1, pyramid_levels + 1):
            y, x = (n // 2**level for n in frame_shape)
            if min(y, x) < SMALLEST_PYRAMID_SIDE_PX:
                break
            shapes.append((n_frames, y, x))
        names = [f"{EXPERIMENT}/data", *(f"{EXPERIMENT}/pyramid/{level}" for level in range(1, len(shapes)))]
        _write_zspy_groups(root, shapes[0], acquisition, name, step_s, original_metadata or {}, origin_px)
        levels = [create_array(root, n, s, dtype, codecs) for n, s in zip(names, shapes, strict=True)]
        writer = FrameWriter(root, levels, compression_level)
        yield writer
        if missing := writer.missing():
            raise StoreError(f"{path}: frames {missing[:5]} of {n_frames} were never written")
        writer.finish()
        root.attrs.update(
            {
                "file_format": "ZSpy",
                "file_format_version": ZSPY_VERSION,
                "ome": multiscales(
                    name, [(n, 2**i) for i, n in enumerate(names)], step_s, acquisition.pixel_size_nm, origin_px
                ),
                ROOT_KEY: to_json(
                    {
                        **(attributes or {}),
                        "kind": "frames",
                        "version": __version__,
                        "name": name,
                        "acquisition": asdict(acquisition),
                        "times_s": None if times is None else times.tolist(),
                        "excluded": list(excluded),
                    },
                    longest=None,
                ),
            }
        )
    link_zspy(path)


def read_frames(path: str | Place, *, dask: bool = True) -> FrameSeries:
    """The series in a frame store, lazily: one Dask chunk a frame.

    With dask=False the frames are the Zarr array itself, which is all that reading them one by one needs; importing
    Dask takes longer than many a stage.

    Raises
    ------
    StoreError
        When the store is missing, incomplete or of another kind; the message names the stage to run first.
    """
    path = location(path)
    attributes = read_attributes(path, kind="frames")
    try:
        data = zarr.open_array(for_zarr(path / EXPERIMENT / "data"), mode="r")
        original_metadata = dict(zarr.open_group(for_zarr(path / EXPERIMENT / "original_metadata"), mode="r").attrs)
        known = {f.name for f in fields(Acquisition)}
        values = {k: v for k, v in attributes["acquisition"].items() if k in known}
        if values.get("pixel_size_nm") is not None:
            values["pixel_size_nm"] = tuple(values["pixel_size_nm"])
        times = attributes["times_s"]
        excluded = tuple(attributes["excluded"])
        name = attributes["name"]
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: incomplete frame store ({error}); run the {_stage(path)} stage again") from error
    chunk_folder = path / EXPERIMENT / "data" / "c"
    present = sum(1 for _ in chunk_folder.iterdir()) if chunk_folder.is_dir() else 0
    if present < (files := files_of(data)):
        what = "frames" if files == data.shape[0] else "files of frames"
        raise StoreError(f"{path}: holds {present} of {files} {what}; run the {_stage(path)} stage again")
    if dask:
        import dask.array as da

        data = da.from_array(data, chunks=(1, *data.shape[1:]), name=False)
    return FrameSeries(
        frames=data,
        times_s=None if times is None else np.asarray(times, dtype=float),
        acquisition=Acquisition(**values),
        name=name,
        excluded=excluded,
        original_metadata=original_metadata,
    )


def read_array(path: str | Place, name: str) -> np.ndarray:
    """A further array of a frame store (see `FrameWriter.write_array`), in memory."""
    path = location(path)
    read_attributes(path, kind="frames")
    try:
        return zarr.open_array(for_zarr(path / name), mode="r")[...]
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: has no array {name!r}; run the {_stage(path)} stage again") from error


def read_attributes(path: str | Place, *, kind: str | None = None) -> dict[str, Any]:
    """What a frame or map store says of itself: kind, version, name, provenance, settings.

    Raises StoreError when there is no such store, or it is of another kind than asked for.
    """
    path = location(path)
    if not (path / "zarr.json").is_file():
        raise StoreError(f"{path}: no such store; run the {_stage(path)} stage first")
    try:
        attributes = dict(zarr.open_group(for_zarr(path), mode="r").attrs).get(ROOT_KEY)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not a readable Zarr store ({error}); run the {_stage(path)} stage again") from error
    if not isinstance(attributes, dict):
        raise StoreError(f"{path}: not written by atomdiffuser; run the {_stage(path)} stage")
    if kind is not None and attributes.get("kind") != kind:
        raise StoreError(f"{path}: holds {attributes.get('kind')!r}, expected {kind!r}; run the {_stage(path)} stage")
    return attributes


def _stage(path: Place) -> str:
    return {"aligned": "align", "decay": "decay", "damage_maps": "damage"}.get(path.name.split(".")[0], "convert")


def _write_zspy_groups(
    root: zarr.Group,
    shape: tuple[int, int, int],
    acquisition: Acquisition,
    name: str,
    step_s: float | None,
    original_metadata: Mapping[str, Any],
    origin_px: tuple[int, int],
) -> None:
    experiment = root.create_group(EXPERIMENT)
    pixel = acquisition.pixel_size_nm
    space = "px" if pixel is None else "nm"
    axes = (
        ("time", 1.0 if step_s is None else step_s, None if step_s is None else "s", True, 0),
        ("y", 1.0 if pixel is None else pixel[0], space, False, origin_px[0]),
        ("x", 1.0 if pixel is None else pixel[1], space, False, origin_px[1]),
    )
    for i, (axis, scale, units, navigate, first) in enumerate(axes):
        values = dict(name=axis, size=shape[i], scale=scale, offset=first * scale, navigate=navigate, is_binned=False)
        units_value = {} if units is None else {"units": units}
        experiment.create_group(f"axis-{i}").attrs.update({"_type": "UniformDataAxis", **values, **units_value})
    metadata = experiment.create_group("metadata")
    metadata.create_group("General").attrs.update({"title": name, **_date_and_time(acquisition.acquired_at)})
    metadata.create_group("Signal").attrs.update({"signal_type": ""})
    microscope = {
        "acquisition_mode": "STEM",
        "beam_energy": acquisition.beam_energy_kV,  # kV
        "beam_current": None if acquisition.probe_current_pA is None else acquisition.probe_current_pA / 1000,  # nA
        "dwell_time": acquisition.dwell_s,  # s
        "microscope": acquisition.instrument,
    }
    tem = metadata.create_group("Acquisition_instrument").create_group("TEM")
    tem.attrs.update({k: v for k, v in microscope.items() if v is not None})
    experiment.create_group("original_metadata").attrs.update(to_json(original_metadata))
    experiment.create_group("learning_results")


def _date_and_time(acquired_at: str | None) -> dict[str, str]:
    try:
        moment = datetime.fromisoformat(acquired_at or "")
    except ValueError:
        return {}
    return {"date": moment.date().isoformat(), "time": moment.time().isoformat()}


def multiscales(
    name: str,
    datasets: list[tuple[str, int]],
    step_s: float | None,
    pixel_size_nm: tuple[float, float] | None,
    origin_px: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """OME-Zarr 0.5 metadata of (t, y, x) arrays.

    `datasets` lists (path, factor); an array of block means over factor² pixels has its first sample (factor − 1)/2
    pixels off the first pixel's centre, which lies at `origin_px`.
    """
    time = {"name": "t", "type": "time", **({} if step_s is None else {"unit": "second"})}
    space = {"type": "space", **({} if pixel_size_nm is None else {"unit": "nanometer"})}
    pixel = pixel_size_nm or (1.0, 1.0)
    entries = []
    for path, factor in datasets:
        transforms: list[dict[str, Any]] = [
            {"type": "scale", "scale": [1.0 if step_s is None else step_s, *(float(p * factor) for p in pixel)]}
        ]
        first = [p * (o + (factor - 1) / 2) for p, o in zip(pixel, origin_px, strict=True)]
        if any(first):
            transforms.append({"type": "translation", "translation": [0.0, *first]})
        entries.append({"path": path, "coordinateTransformations": transforms})
    axes = [time, {"name": "y", **space}, {"name": "x", **space}]
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": entries}]}


def time_step(times_s: np.ndarray | None, frame_time_s: float | None) -> float | None:
    """Mean time from frame to frame [s]; the stated frame time where the times agree with it; None when unknown."""
    if times_s is None or len(times_s) < 2:
        return frame_time_s
    mean = float(times_s[-1] - times_s[0]) / (len(times_s) - 1)
    agrees = frame_time_s is not None and math.isclose(mean, frame_time_s, rel_tol=UNIFORM_TIMES_RTOL)
    return frame_time_s if agrees else mean


def block_mean(frame: np.ndarray, factor: int) -> np.ndarray:
    """Mean over factor × factor pixels; an incomplete last block is left out; integers are rounded."""
    if factor == 1:
        return frame
    y, x = (n // factor for n in frame.shape)
    whole = frame.dtype.kind in "iu"
    narrow = whole and frame.dtype.itemsize <= 2 and factor <= 16  # sums are exact in 32 bit, whole or not
    # several times faster than `reshape(…).mean((1, 3))`: long runs are added instead of short ones
    rows = _sum_of_slices(
        [frame[i : y * factor : factor, : x * factor] for i in range(factor)], np.int32 if narrow else np.float64
    )
    mean = _sum_of_slices([rows[:, i::factor] for i in range(factor)], np.float32 if narrow else np.float64)
    mean /= mean.dtype.type(factor**2)
    return np.rint(mean, out=mean) if whole else mean


def _sum_of_slices(slices: list[np.ndarray], dtype: type) -> np.ndarray:
    total = slices[0].astype(dtype)
    for values in slices[1:]:
        total += values
    return total


def native_dtype(dtype: Any) -> np.dtype:
    """The dtype in this machine's byte order; raises ShapeError for what is no grey value."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ShapeError(f"frames of dtype {dtype} cannot be stored, expected integers or floats of up to 64 bit")
    return dtype.newbyteorder("=")


def compressors(level: int, dtype: Any) -> list[BloscCodec] | None:
    """Zstandard by Blosc after a shuffle of bytes; level 0 stores uncompressed.

    Counts and maps are noisy: their upper bytes compress well once they lie together, their lower ones hardly at all.
    """
    if not level:
        return None
    return [BloscCodec(cname="zstd", clevel=level, shuffle="shuffle", typesize=np.dtype(dtype).itemsize)]


def create_array(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: Any, compressors: Any) -> zarr.Array:
    """A (t, y, x) array with one chunk a frame; every chunk is written, so that a missing one shows.

    In a long one several chunks share a file, see `shards`.
    """
    together = frames_a_shard(shape[0], math.prod(shape[1:]) * np.dtype(dtype).itemsize)
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(1, *shape[1:]),
        shards=(together, *shape[1:]) if together > 1 else None,
        dimension_names=("t", "y", "x"),
        compressors=compressors,
        config={"write_empty_chunks": True},
    )


def write_array(group: zarr.Group, name: str, array: np.ndarray, compressors: Any) -> None:
    """Store a small array in one chunk."""
    dimension_names = ("y", "x") if array.ndim == 2 else None
    target = group.create_array(
        name,
        shape=array.shape,
        dtype=native_dtype(array.dtype),
        chunks=array.shape,
        dimension_names=dimension_names,
        compressors=compressors,
        config={"write_empty_chunks": True},
    )
    target[...] = array


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to write into, renamed to `path` on success and removed on failure.

    What stood under `path` before stays until the new folder is whole. One writer per path at a time is assumed, as
    the workflow's lock ensures; what a killed writer left behind is cleared by the next.
    """
    path = Path(path)
    partial, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "old"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (path.is_symlink() or path.exists()) and old.exists():  # killed between the two renames below
        os.rename(old, path)
    for leftover in (partial, old):
        remove(leftover)
    try:
        yield partial
        if path.is_symlink() or path.exists():
            os.rename(path, old)
        os.rename(partial, path)
    except BaseException:
        if not path.exists() and old.exists():
            os.rename(old, path)
        raise
    finally:
        remove(partial)
        remove(old)


def remove(path: Path) -> None:
    """Delete a file, link or folder; a link's target stays."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def link_zspy(path: Path) -> None:
    """Give `<stem>.ome.zarr` its second name `<stem>.zspy`; file systems without links go without."""
    link = path.with_name(path.name.split(".")[0] + ".zspy")
    temporary = link.with_name(f".{link.name}.partial")
    remove(temporary)
    try:
        temporary.symlink_to(path.name)
        if link.exists() and not link.is_symlink():
            remove(link)
        os.replace(temporary, link)
    except OSError:
        remove(temporary)


def to_json(value: Any, *, longest: int | None = LARGEST_METADATA_LIST) -> Any:
    """Plain JSON values: arrays as lists (`longest` elements at most, None: any), NaN and infinities as strings."""
    if isinstance(value, Mapping):
        return {str(k): to_json(v, longest=longest) for k, v in value.items()}
    if isinstance(value, np.ndarray) and value.ndim:
        if longest is not None and value.size > longest:
            return f"<array {value.dtype} {value.shape}>"
        return to_json(value.tolist(), longest=longest)
    if isinstance(value, list | tuple | set | frozenset):
        if longest is not None and len(value) > longest:
            return f"<list of {len(value)}>"
        return [to_json(v, longest=longest) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
