"""Movies of a series: MP4, GIF or WebP, each frame with scale bar, time and fluence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from atomdiffuser.errors import SettingsError
from atomdiffuser.exports.source import ImageStack

SAMPLED_IMAGES = 16
PERCENTILES = (0.5, 99.5)
SMALLEST_SIDE_PX = 512  # lettering is legible from there
BAR_SHARE = 0.25  # of the width, at most
MARGIN_SHARE = 0.03
UNSEEN_GREY = 64


def write_movie(path: Path, stack: ImageStack, *, fps: float = 5.0, zoom: int | None = None) -> None:
    """Write a movie; one grey scale for all frames, pixels that were not seen in dark grey.

    Raises SettingsError when an MP4 is wanted and `imageio-ffmpeg` (extra `export`) is missing.
    """
    if fps <= 0:
        raise SettingsError(f"fps is {fps}, expected a positive number")
    pictures = movie_frames(stack, zoom=zoom)
    if path.suffix.lower() == ".mp4":
        _write_mp4(path, pictures, fps)
        return
    first = next(pictures)
    options: dict[str, Any] = {"duration": round(1000 / fps), "loop": 0}
    if path.suffix.lower() == ".webp":
        options |= {"quality": 85, "method": 4}
    first.save(path, save_all=True, append_images=pictures, **options)


def movie_frames(stack: ImageStack, *, zoom: int | None = None) -> Iterator[Any]:
    """The lettered frames as Pillow images (mode L), one by one."""
    from PIL import Image

    zoom = zoom or max(1, math.ceil(SMALLEST_SIDE_PX / max(stack.shape)))
    low, high = stack.limits or grey_limits(stack)
    size = tuple(2 * math.ceil(n * zoom / 2) for n in reversed(stack.shape))  # video codecs want even sides
    for k, image in enumerate(stack):
        picture = Image.fromarray(as_grey(image, low, high)).resize(size, Image.Resampling.NEAREST)
        yield _lettered(picture, stack, k, zoom)


def grey_limits(stack: ImageStack) -> tuple[float, float]:
    """Values of black and white: percentiles over some of the images, so that a few hot pixels do not matter."""
    chosen = sorted({round(k) for k in np.linspace(0, len(stack) - 1, min(SAMPLED_IMAGES, len(stack)))})
    values = [image[np.isfinite(image)] for image in map(stack.read, chosen)]
    known = np.concatenate(values) if values else np.zeros(0)
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1.0


def as_grey(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """8-bit grey values of an image; what was not seen (NaN) in dark grey."""
    image = np.asarray(image, dtype=np.float32)
    seen = np.isfinite(image)
    scaled = np.clip((np.where(seen, image, low) - low) / (high - low), 0, 1)
    return np.where(seen, np.rint(255 * scaled), UNSEEN_GREY).astype(np.uint8)


def bar_length_nm(width_nm: float) -> float:
    """The longest of 1, 2, 5, 10, … that takes at most a quarter of the width [nm].

    >>> bar_length_nm(5.12), bar_length_nm(40), bar_length_nm(0.9)
    (1.0, 10.0, 0.2)
    """
    longest = BAR_SHARE * width_nm
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9))


def caption(stack: ImageStack, index: int) -> str:
    """Frame number, time and fluence of one image, as far as they are known."""
    parts = [f"frame {stack.numbers[index]}"]
    if stack.times_s is not None:
        parts.append(f"{stack.times_s[index]:.4g} s")
    if stack.fluence_e_per_A2 is not None:
        parts.append(f"{stack.fluence_e_per_A2[index]:,.0f} e⁻/Å²".replace(",", "\u202f"))
    return "   ".join(parts)


def _lettered(picture: Any, stack: ImageStack, index: int, zoom: int) -> Any:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    margin = round(MARGIN_SHARE * max(width, height))
    font = _font(max(11, round(0.032 * max(width, height))))
    outlined: dict[str, Any] = {"fill": 255, "font": font, "stroke_width": 2, "stroke_fill": 0}
    draw.text((margin, margin), caption(stack, index), anchor="lt", **outlined)
    if stack.pixel_size_nm is not None:
        pixel = stack.pixel_size_nm[1]
        length = bar_length_nm(stack.shape[1] * pixel)
        thick = max(3, margin // 4)
        right, bottom = margin + round(length / pixel * zoom), height - margin
        draw.rectangle((margin - 1, bottom - thick - 1, right + 1, bottom + 1), fill=0)
        draw.rectangle((margin, bottom - thick, right, bottom), fill=255)
        draw.text((margin, bottom - thick - margin // 3), f"{length:g} nm", anchor="lb", **outlined)
    return picture


@cache
def _font(size: int) -> Any:
    """DejaVu Sans, which Matplotlib brings: it has the superscripts of e⁻/Å²."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _write_mp4(path: Path, pictures: Iterator[Any], fps: float) -> None:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        raise SettingsError('writing MP4 needs imageio-ffmpeg: pip install "atomdiffuser[export]"') from None
    first = next(pictures)
    writer = imageio_ffmpeg.write_frames(
        str(path), first.size, pix_fmt_in="gray", pix_fmt_out="yuv420p", fps=fps, codec="libx264", quality=8,
        macro_block_size=2, ffmpeg_log_level="error",
    )  # fmt: skip
    writer.send(None)
    try:
        for picture in itertools.chain([first], pictures):
            writer.send(np.ascontiguousarray(picture))
    finally:
        writer.close()
