"""Reading pages in tests: tables, attributes and embedded data, with the standard library's parser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np


class Page(HTMLParser):
    """Text of a page, its tables as lists of (value, text) cells, its links, and the JSON it carries."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, list[list[tuple[str | None, str]]]] = {}
        self.urls: list[str] = []
        self.tags: list[str] = []
        self.texts: dict[str, str] = {}
        self._table, self._cell, self._skip, self._class = "", None, 0, ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.urls += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "poster", "action") and v]
        if tag == "table":
            self._table = values.get("id") or ""
            self.tables.setdefault(self._table, [])
        elif tag == "tr" and self._table in self.tables:
            self.tables[self._table].append([])
        elif tag in ("td", "th") and self.tables.get(self._table):
            self._cell = [values.get("data-value"), ""]
        if values.get("class"):
            self._class = values["class"] or ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            text = re.sub(r"\s+", " ", self._cell[1].replace("\u202f", "\u202f")).strip()
            self.tables[self._table][-1].append((self._cell[0], text))
            self._cell = None
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell[1] += data
        self.texts[self._class] = self.texts.get(self._class, "") + data

    @property
    def data(self) -> Any:
        """The JSON that the page's script works with."""
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', self.source, re.DOTALL)
        assert found is not None
        return json.loads(found[1])

    def records(self, table: str) -> list[dict[str, tuple[str | None, str]]]:
        """Body rows of a table, by the text of each column's head."""
        heads = [text for _, text in self.tables[table][0]]
        return [dict(zip(heads, row, strict=True)) for row in self.rows(table)]

    def rows(self, table: str) -> list[list[tuple[str | None, str]]]:
        """Body rows of a table."""
        return self.tables[table][1:]


def same(text: str | None, value: float) -> bool:
    """Whether a cell's exact value is the table's, bit by bit; NaN is itself."""
    return text is not None and (float(text) == value or (np.isnan(float(text)) and np.isnan(value)))


def pick(record: dict[str, tuple[str | None, str]], start: str) -> tuple[str | None, str]:
    """The cell whose column begins with `start`."""
    return next(cell for head, cell in record.items() if head.startswith(start))
