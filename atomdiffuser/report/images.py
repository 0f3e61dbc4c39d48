"""Images for the pages: shrunk by area, aligned where asked, as WebP data URIs of a known size.

Frames are read one at a time. What goes into a page is resampled for the eye only; every number comes from the tables.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from atomdiffuser.series import FrameSeries

LOW_PERCENTILE, HIGH_PERCENTILE = 0.3, 99.7
WEBP_QUALITY = 62
THUMBNAIL_QUALITY = 50
UNSEEN_GREY = 128


@dataclass(frozen=True)
class Grey:
    """Grey limits in detector counts: what is drawn black and what white."""

    low: float
    high: float

    @classmethod
    def of(cls, image: np.ndarray) -> Grey:
        finite = image[np.isfinite(image)]
        if finite.size == 0:
            return cls(0.0, 1.0)
        low, high = np.percentile(finite, [LOW_PERCENTILE, HIGH_PERCENTILE])
        return cls(float(low), float(high) if high > low else float(low) + 1.0)

    def to_uint8(self, image: np.ndarray) -> np.ndarray:
        scaled = (image - self.low) / (self.high - self.low) * 255
        grey = np.clip(np.nan_to_num(scaled, nan=UNSEEN_GREY, posinf=255, neginf=0), 0, 255)
        return np.rint(grey).astype(np.uint8)


def shrink(image: np.ndarray, side_px: int) -> tuple[np.ndarray, int]:
    """Block means so that the longer side is at most `side_px`, and the factor used; NaN pixels do not count."""
    factor = max(1, -(-max(image.shape) // side_px))
    return block_nanmean(image, factor), factor


def block_nanmean(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean of the finite pixels of each factor × factor block, float32; NaN where a block has none.

    Blocks at the far edges may be incomplete, so the result covers the whole image.
    """
    if factor == 1:
        return np.asarray(image, dtype=np.float32)
    y, x = (-(-n // factor) * factor for n in image.shape)
    padded = np.full((y, x), np.nan, dtype=np.float32)
    padded[: image.shape[0], : image.shape[1]] = image
    blocks = padded.reshape(y // factor, factor, x // factor, factor)
    seen = np.isfinite(blocks)
    count = seen.sum((1, 3))
    total = np.where(seen, blocks, 0).sum((1, 3), dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def aligned_frame(series: FrameSeries, index: int, frame_from_reference: np.ndarray) -> np.ndarray:
    """One frame moved onto the reference grid by linear interpolation, float32; NaN outside what it saw."""
    from scipy import ndimage

    frame = series.frame(index).astype(np.float32)
    if np.allclose(frame_from_reference, np.eye(3), atol=1e-9):
        return frame
    return ndimage.affine_transform(
        frame, frame_from_reference[:2, :2], frame_from_reference[:2, 2], order=1, mode="constant", cval=np.nan
    )


def raw_and_aligned_mean(
    series: FrameSeries, affines: dict[int, np.ndarray], crop_px: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Means of the same frames as recorded and after alignment, of the frame's central part at full resolution.

    Parameters
    ----------
    affines
        frame_from_reference of each frame to use, by its number.
    crop_px
        Side of the part shown [px]; at most the frame's.

    Returns
    -------
    raw, aligned
        (y, x) float32, the same pixels of the reference grid.
    origin
        (y, x) of their first pixel on the reference grid.
    """
    from scipy import ndimage

    size = tuple(min(crop_px, n) for n in series.frame_shape)
    origin = tuple((n - s) // 2 for n, s in zip(series.frame_shape, size, strict=True))
    window = tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))
    raw, aligned, count = np.zeros(size), np.zeros(size), np.zeros(size)
    for index, affine in affines.items():
        frame = series.frame(index)
        raw += frame[window]
        offset = affine[:2, :2] @ np.array(origin) + affine[:2, 2]
        moved = ndimage.affine_transform(
            frame.astype(np.float32), affine[:2, :2], offset, size, order=1, mode="constant", cval=np.nan
        )
        seen = np.isfinite(moved)
        aligned[seen] += moved[seen]
        count += seen
    mean = np.where(count > 0, aligned / np.maximum(count, 1), np.nan)
    return (raw / max(1, len(affines))).astype(np.float32), mean.astype(np.float32), (origin[0], origin[1])


def webp(image: np.ndarray, *, quality: int = WEBP_QUALITY) -> str:
    """A uint8 image, grey (y, x) or colour (y, x, 3), as a WebP data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def scale_bar(width_px: int, pixel_size_nm: tuple[float, float] | None) -> tuple[float, str] | None:
    """Length of a scale bar as a share of an image's width, and its label: 1, 2 or 5 × 10ⁿ nm, about a quarter wide.

    None while the pixel size is unknown.
    """
    if pixel_size_nm is None or width_px < 1:
        return None
    width_nm = width_px * pixel_size_nm[1]
    target = width_nm / 4
    decade = 10.0 ** np.floor(np.log10(target))
    length = max(step * decade for step in (1, 2, 5) if step * decade <= target * 1.0001)
    label = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    return float(length / width_nm), label
