"""Writes the fault table of docs/reliability.md from the tests' `fault` marks: `python tests/fault_table.py`.

The marks are read from the tests' source, so that the table can be made, and checked, without importing a test.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- begin of the fault table, written by `make faults` -->", "<!-- end of the fault table -->"
COLUMNS = ("fault", "happens", "user_sees")
HEAD = "| fault | what happens | what the user sees |\n|---|---|---|"


@dataclass(frozen=True)
class Fault:
    """One row: what goes wrong, what happens then, what the user sees."""

    fault: str
    happens: str
    user_sees: str


def faults_of(source: str, name: str) -> list[Fault]:
    """The marks in one test file, in the order of its lines.

    Raises ValueError, naming file and line, for a mark that is not three literal texts.
    """
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and _is_mark(n.func)]
    found = []
    for call in sorted(calls, key=lambda c: (c.lineno, c.col_offset)):
        values = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        if call.args or set(values) != set(COLUMNS) or not all(isinstance(v, str) and v for v in values.values()):
            raise ValueError(f"{name}:{call.lineno}: a fault mark takes {', '.join(COLUMNS)}, each a literal text")
        found.append(Fault(**values))
    return found


def table(tests: Path) -> str:
    """The whole table in Markdown: a heading and a table for each test file that injects faults."""
    parts, total = [], 0
    for path, title, faults in _files(tests):
        total += len(faults)
        rows = [f"| {' | '.join(_cell(getattr(f, c)) for c in COLUMNS)} |" for f in faults]
        where = path.relative_to(tests.parent).as_posix()
        parts += [f"### {title}", "", f"`{where}`", "", HEAD]
        parts += [*rows, ""]
    return "\n".join([f"{total} faults, each injected by a test.", "", *parts]).rstrip() + "\n"


def with_table(page: str, rows: str) -> str:
    """The page with its fault table replaced."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name}: has no lines {BEGIN!r} and {END!r}, which the table goes between")
    return f"{head}{BEGIN}\n\n{rows}\n{END}{tail}"


def _files(tests: Path) -> Iterator[tuple[Path, str, list[Fault]]]:
    for path in sorted(tests.rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        if "mark.fault(" in source and (faults := faults_of(source, path.name)):
            docstring = ast.get_docstring(ast.parse(source)) or path.stem
            yield path, docstring.splitlines()[0].rstrip("."), faults


def _is_mark(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and ast.unparse(function) == "pytest.mark.fault"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, table(TESTS)), encoding="utf-8")
    print(f"{PAGE}: {table(TESTS).splitlines()[0]}", file=sys.stderr)
