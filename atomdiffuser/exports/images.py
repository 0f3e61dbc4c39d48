"""Stacks as files of other programs: TIFF for ImageJ and Fiji, MRC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from atomdiffuser._version import __version__
from atomdiffuser.errors import SettingsError
from atomdiffuser.exports.source import ImageStack

IMAGEJ_TYPES = (np.uint8, np.uint16, np.float32)
IMAGEJ_LIMIT_BYTES = 2**32 - 2**16
MRC_TYPES = (np.int8, np.int16, np.uint16, np.float32)
MRC_LABEL_CHARACTERS = 79


def write_tiff(path: Path, stack: ImageStack) -> None:
    """Write a TIFF that ImageJ opens as a calibrated stack in time, one image after the other.

    Pixel size (nm) and mean frame interval (s) are where ImageJ looks for them; times and fluence of each frame are in
    the image's info (Image ▸ Show Info…). Values of other types than ImageJ's become float32.

    Raises SettingsError above 4 GiB, which is what such a file can hold.
    """
    import tifffile

    dtype = _fitting(stack.dtype, IMAGEJ_TYPES)
    size = len(stack) * stack.shape[0] * stack.shape[1] * dtype.itemsize
    if size > IMAGEJ_LIMIT_BYTES:
        raise SettingsError(
            f"{path}: {size / 2**30:.1f} GiB are more than a TIFF for ImageJ holds; export fewer frames, or open the "
            ".ome.zarr in Fiji itself"
        )
    y, x = stack.pixel_size_nm or (1.0, 1.0)
    metadata: dict[str, Any] = {"axes": "TYX", "Info": describe_frames(stack)}
    if stack.pixel_size_nm is not None:
        metadata["unit"] = "nm"
    if stack.step_s is not None:
        metadata |= {"finterval": stack.step_s, "tunit": "s"}
    images = (np.ascontiguousarray(image, dtype=dtype) for image in stack)
    with tifffile.TiffWriter(path, imagej=True) as file:
        file.write(
            images, shape=(len(stack), *stack.shape), dtype=dtype, resolution=(1 / x, 1 / y), metadata=metadata,
            photometric="minisblack",
        )  # fmt: skip


def write_mrc(path: Path, stack: ImageStack) -> None:
    """Write an MRC image stack with its pixel size [Å]; the interval of the frames is in a label.

    Values of other types than MRC's become float32. Needs the extra `export`.
    """
    mrcfile = _import_mrcfile()
    dtype = _fitting(stack.dtype, MRC_TYPES)
    mode = mrcfile.utils.mode_from_dtype(dtype)
    with mrcfile.new_mmap(path, (len(stack), *stack.shape), mrc_mode=mode, overwrite=True) as file:
        file.set_image_stack()
        for k, image in enumerate(stack):
            file.data[k] = image
        if stack.pixel_size_nm is not None:
            y, x = (10 * p for p in stack.pixel_size_nm)
            file.voxel_size = (x, y, 1.0)
        file.header.nlabl = 0
        file.add_label(f"AtomDiffuser {__version__}")
        if stack.step_s is not None:
            file.add_label(f"frame interval {stack.step_s:.6g} s"[:MRC_LABEL_CHARACTERS])
        finite = [image[np.isfinite(image)] for image in stack]
        file.header.dmin = min((v.min() for v in finite if v.size), default=0)
        file.header.dmax = max((v.max() for v in finite if v.size), default=0)


def describe_frames(stack: ImageStack) -> str:
    """A line per image: frame number, time and fluence as far as they are known."""
    lines = [f"{stack.name}, exported by AtomDiffuser {__version__}"]
    for k, number in enumerate(stack.numbers):
        facts = [f"frame {number}"]
        if stack.times_s is not None:
            facts.append(f"{stack.times_s[k]:.6g} s")
        if stack.fluence_e_per_A2 is not None:
            facts.append(f"{stack.fluence_e_per_A2[k]:.6g} e/A^2")
        lines.append(", ".join(facts))
    return "\n".join(lines)


def _fitting(dtype: np.dtype, types: tuple[type, ...]) -> np.dtype:
    return np.dtype(dtype) if dtype in types else np.dtype(np.float32)


def _import_mrcfile():  # type: ignore[no-untyped-def]
    try:
        import mrcfile
    except ModuleNotFoundError:
        raise SettingsError('writing MRC needs mrcfile: pip install "atomdiffuser[export]"') from None
    return mrcfile
