"""Raw files and results in object stores, under addresses such as `s3://bucket/session/results/a`, read through fsspec.

Zarr stores are read where they are, chunk by chunk. Other files are copied to this machine when they are first read,
and again when they have changed there; the copies lie in `atomdiffuser/objects` of the user's cache folder. Nothing is
written to an object store. Credentials and end points are fsspec's and the cloud's own, such as AWS_PROFILE and
AWS_ENDPOINT_URL; for `s3://` the extra `s3` is needed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from atomdiffuser.errors import ReadError, StoreError

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://.+")


class RemotePath:
    """An object or a folder of objects, with those names of `pathlib.Path` that reading needs."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"RemotePath({self.url!r})"

    def __truediv__(self, other: str) -> RemotePath:
        return RemotePath(f"{self.url}/{other}")

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.url).name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.url).stem

    @property
    def suffix(self) -> str:
        """With its dot."""
        return PurePosixPath(self.url).suffix

    def with_name(self, name: str) -> RemotePath:
        """Another object beside this one."""
        return RemotePath(f"{self.url.rpartition('/')[0]}/{name}")

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there are objects whose names go on from here."""
        return self._kind() == "directory"

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies directly in this folder."""
        for found in self._asked("ls", self._path, detail=False):
            yield self / PurePosixPath(found).name

    def version(self) -> str:
        """What changes with the object's contents."""
        return str(self._asked("ukey", self._path))

    def copy_to(self, path: Path) -> None:
        """Copy the object to a file, which is there whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            self._asked("get_file", self._path, str(partial))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _kind(self) -> str:
        try:
            return str(self._asked("info", self._path)["type"])
        except FileNotFoundError:
            return ""

    def _asked(self, what: str, *arguments: Any, **named: Any) -> Any:
        """An answer of the file system; what goes wrong with the way there is a StoreError."""
        try:
            return getattr(self._system, what)(*arguments, **named)
        except (FileNotFoundError, StoreError):
            raise
        except Exception as error:  # each kind of store has its own
            raise StoreError(f"{self.url}: the object store does not answer ({error})") from error

    @cached_property
    def _system(self) -> Any:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.url)[0]
        except ImportError as error:
            raise StoreError(
                f"{self.url}: needs a further package ({error}); for s3:// pip install 'atomdiffuser[s3]'"
            ) from error
        except ValueError as error:
            raise StoreError(f"{self.url}: no kind of object store that is known ({error})") from error

    @property
    def _path(self) -> str:
        return str(self._system._strip_protocol(self.url))


Place = Path | RemotePath


def location(path: str | Path | RemotePath) -> Place:
    """A path of this machine, or a place in an object store where the text is an address."""
    if isinstance(path, RemotePath):
        return path
    return RemotePath(path) if isinstance(path, str) and ADDRESS.fullmatch(path) else Path(path)


def for_zarr(place: Place) -> Path | str:
    """The same as Zarr takes it."""
    return str(place) if isinstance(place, RemotePath) else place


def local_copies(places: Sequence[RemotePath]) -> list[Path]:
    """Files of this machine with the contents and names of the objects, beside each other."""
    try:
        versions = [f"{place.url}\n{place.version()}" for place in places]
    except FileNotFoundError as error:
        raise ReadError(f"{places[0]}: no such object ({error})") from error
    folder = cache_folder() / hashlib.sha256("\n".join(versions).encode()).hexdigest()[:32]
    copies = [folder / place.name for place in places]
    for place, path in zip(places, copies, strict=True):
        if not path.is_file():
            place.copy_to(path)
    return copies


def cache_folder() -> Path:
    """Where copies of objects lie; safe to delete."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "atomdiffuser" / "objects"


def here(path: Any) -> Any:
    """Raw files of an object store as copies on this machine; stores and what is here already stay as given."""
    many = [path] if isinstance(path, str | Path | RemotePath) else list(path)
    places = [location(p) for p in many]
    remote = [p for p in places if isinstance(p, RemotePath)]
    if not remote:
        return path
    if len(remote) < len(places):
        raise ReadError(f"{remote[0]}: some files of the series are in an object store, others not; copy them here")
    if len(remote) == 1 and (remote[0] / "zarr.json").is_file():
        return remote[0]
    if len(remote) == 1 and remote[0].is_dir():
        raise ReadError(f"{remote[0]}: a folder of an object store; give its files, or copy it here")
    copies = local_copies(remote)
    return copies if len(copies) > 1 else copies[0]
