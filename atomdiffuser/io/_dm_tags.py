"""Structure of a Digital Micrograph file, checked before its values are read.

The reader behind it trusts every count in the file: it would build lists of as many values as a damaged count says,
follow negative lengths back and forth, and read a picture value by value when its name has one wrong letter.
Layout: C. Boothroyd, "Digital Micrograph file format", https://www.er-c.org/cbb/info/dmformat
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from atomdiffuser.errors import ReadError

_BYTES = {2: 2, 3: 4, 4: 2, 5: 4, 6: 4, 7: 8, 8: 1, 9: 1, 10: 1, 11: 8, 12: 8}
_STRUCT, _STRING, _ARRAY = 15, 18, 20
DEEPEST = 64
MOST_VALUES = 2**22
"""Values outside pictures, in all: each takes some 40 bytes as a Python number."""


def check_dm(path: Path) -> None:
    """Raise ReadError unless every tag lies within the file and says a size that can be."""
    with path.open("rb") as file:
        tags = _Tags(path, file, path.stat().st_size)
        tags.wide = tags.number(">I") == 4
        tags.length()
        tags.number(">I")
        tags.skip(2)
        tags.group(tags.length(), "", 0)


class _Tags:
    """The tags of one file, walked through in order."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.wide = False
        self.values = 0

    def group(self, count: int, name: str, depth: int) -> None:
        """`count` tags of a group of that name."""
        if depth > DEEPEST:
            raise self._damaged("groups nest too deep")
        for _ in range(count):
            kind = self.number(">B")
            length = self.number(">H")
            tag = self._read(length)
            if self.wide and kind in (20, 21):
                self.skip(8)
            if kind == 20:
                self.skip(2)
                self.group(self.length(), tag.decode("latin-1"), depth + 1)
            elif kind == 21:
                if self._read(4) != b"%%%%":
                    raise self._damaged("a tag does not start where it should")
                self._data(picture=name == "ImageData" and tag == b"Data")
            else:
                raise self._damaged(f"a tag is of kind {kind}")

    def number(self, form: str) -> int:
        """The next integer of a `struct` format."""
        return struct.unpack(form, self._read(struct.calcsize(form)))[0]

    def length(self) -> int:
        """The next count or size, 4 bytes wide in DM3 and 8 in DM4; it is never negative."""
        value = self.number(">q" if self.wide else ">i")
        if value < 0:
            raise self._damaged(f"a length is {value}")
        return value

    def skip(self, count: int) -> None:
        """Go over bytes that have to be there."""
        if self.file.tell() + count > self.size:
            raise self._damaged(f"{self.size} bytes, its tags promise {self.file.tell() + count}")
        self.file.seek(count, 1)

    def _data(self, *, picture: bool) -> None:
        fields = self.length()
        kind = self.length()
        if fields == 1:
            size, count = self._item(kind), 1
        elif kind == _STRING:
            size, count = 1, self.length()
        elif kind == _STRUCT:
            size, count = self._struct()
        elif kind == _ARRAY:
            inner = self.length()
            size, values = 0, 1
            if inner == _STRUCT:
                size, values = self._struct()
            elif inner == _STRING:
                size = values = self.length()
            elif inner == _ARRAY:
                inner = self.length()
                values = self.length()
                size = values * self._item(inner)
            else:
                size = self._item(inner)
            elements = self.length()
            size, count = size * elements, max(values, 1) * elements
        else:
            raise self._damaged(f"a tag holds data of kind {kind}")
        if not picture:
            self.values += count
            if self.values > MOST_VALUES:
                raise self._damaged(f"a tag claims {count} values")
        self.skip(size)

    def _struct(self) -> tuple[int, int]:
        """Bytes and values of a structure."""
        self.length()
        fields = self.length()
        size = 0
        for _ in range(fields):
            self.length()
            size += self._item(self.length())
        return size, fields

    def _item(self, kind: int) -> int:
        if kind not in _BYTES:
            raise self._damaged(f"a tag holds values of kind {kind}")
        return _BYTES[kind]

    def _read(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise self._damaged(f"it ends after {self.size} bytes, within a tag")
        return data

    def _damaged(self, what: str) -> ReadError:
        return ReadError(f"{self.path}: truncated or damaged ({what}); copy it again from the microscope")
