"""Results for other programs: ImageJ TIFF, MRC, CSV, and movies with scale bar, time and fluence."""

from __future__ import annotations

from pathlib import Path

from atomdiffuser.errors import SettingsError
from atomdiffuser.exports.source import ImageStack, open_stack

MOVIES = (".mp4", ".gif", ".webp")
SUFFIXES = (".tif", ".tiff", ".mrc", ".csv", *MOVIES)
TABLES = (".parquet", ".csv")

__all__ = ["SUFFIXES", "ImageStack", "export", "open_stack"]


def export(
    source: str | Path,
    output: str | Path,
    *,
    map_name: str = "contrast",
    frames: tuple[int, int] | None = None,
    fps: float = 5.0,
    zoom: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a stored series, map or table in a format of other programs; the output's suffix says which.

    Parameters
    ----------
    source
        frames.ome.zarr, aligned.ome.zarr, decay.zarr, a table (.parquet, .csv), or a raw microscope file.
    output
        .tif, .mrc, .mp4, .gif or .webp for images; .csv for tables.
    map_name
        Which of the maps, when the source is decay.zarr.
    frames
        First and last frame, both included; all when None.
    fps
        Frames per second of a movie.
    zoom
        Magnification of a movie's frames; None makes small frames large enough for the lettering.
    overwrite
        Replace an output that exists.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    SettingsError
        When the suffix is unknown or does not suit the source, the output exists, or a library for it is missing.
    StoreError
        When the source is missing or incomplete.

    Examples
    --------
    >>> export("aligned.ome.zarr", "movie.avi")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    atomdiffuser.errors.SettingsError: movie.avi: unknown format '.avi'; known are .tif, .tiff, .mrc, .csv, .mp4, ...
    """
    source, output = Path(source), Path(output)
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise SettingsError(f"{output}: unknown format {output.suffix!r}; known are {', '.join(SUFFIXES)}")
    if output.exists() and not overwrite:
        raise SettingsError(f"{output}: exists already; choose another name, or allow it to be overwritten")
    if (source.suffix in TABLES) != (suffix == ".csv"):
        fitting = "a table is written as .csv" if source.suffix in TABLES else "images are not written as .csv"
        raise SettingsError(f"{output}: {fitting}; {source.name} is what was given")
    output.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".csv":
        from atomdiffuser.io.tables import plain_text, read_table

        plain_text(read_table(source)).to_csv(output, index=False)
        return output
    stack = open_stack(source, map_name=map_name, frames=frames)
    if suffix == ".mrc":
        from atomdiffuser.exports.images import write_mrc

        write_mrc(output, stack)
    elif suffix in MOVIES:
        from atomdiffuser.exports.movie import write_movie

        write_movie(output, stack, fps=fps, zoom=zoom)
    else:
        from atomdiffuser.exports.images import write_tiff

        write_tiff(output, stack)
    return output
