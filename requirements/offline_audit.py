"""Compare pinned versions with the known vulnerabilities listed in advisories.csv: no network is asked.

Run by `make audit-offline`. Prints a line per affected pin, and one per pin that was never looked up; fails on either.
"""

from __future__ import annotations

import csv
import operator
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

FOLDER = Path(__file__).resolve().parent
LIST = FOLDER / "advisories.csv"
LOCK = FOLDER / "lock.txt"
COMPARE: dict[str, Callable[[Version, Version], bool]] = {
    ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "==": operator.eq,
}  # fmt: skip
BOUND = re.compile(r"(>=|<=|==|>|<)\s*(\S+)")
PIN = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;#]+)")
Bounds = list[tuple[str, Version]]


@dataclass(frozen=True)
class Advisory:
    """A known vulnerability: every interval of versions it affects, and what it is."""

    name: str
    intervals: tuple[Bounds, ...]
    title: str

    def fixed_in(self, version: Version) -> str | None:
        """The first version that is not affected any more, or None where this version is not affected.

        Versions are compared as they are ordered, so a release candidate of the fixed version counts as affected.
        """
        for bounds in self.intervals:
            if all(COMPARE[sign](version, limit) for sign, limit in bounds):
                ends = [str(limit) for sign, limit in bounds if sign == "<"]
                last = [f"after {limit}" for sign, limit in bounds if sign in ("<=", "==")]
                return (ends or last or ["no version yet"])[0]
        return None


def intervals(text: str) -> tuple[Bounds, ...]:
    """Intervals from text such as `>=1.8,<1.8.2 or <1.6.2`; `all` stands for every version."""
    if text.strip() == "all":
        return ([],)
    found: list[Bounds] = []
    for part in text.split(" or "):
        bounds = [BOUND.fullmatch(bound.strip()) for bound in part.split(",")]
        if not all(bounds):
            raise ValueError(f"{LIST.name}: cannot read the versions {text!r}")
        found.append([(m[1], Version(m[2])) for m in bounds if m])
    return tuple(found)


def read_list(path: Path = LIST) -> dict[str, list[Advisory]]:
    """Advisories by package; a package that was looked up and has none stands there with an empty list."""
    known: dict[str, list[Advisory]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            advisories = known[canonicalize_name(row["package"])]
            if row["advisory"]:
                advisories.append(Advisory(row["advisory"], intervals(row["affected"]), row["title"]))
    return dict(known)


def read_pins(path: Path) -> dict[str, Version]:
    """Pinned version by package; a local part (`+cpu`) names a build of the same version and is left out."""
    pins = [PIN.match(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {canonicalize_name(pin[1]): Version(Version(pin[2]).public) for pin in pins if pin}


def findings(pins: dict[str, Version], known: dict[str, list[Advisory]]) -> Iterable[str]:
    """A line per pin and advisory that affects it, and per pin that the list does not name."""
    for package, version in sorted(pins.items()):
        if package not in known:
            yield f"{package} {version}: never looked up, advisories.csv does not name it"
        for advisory in known.get(package, []):
            fixed = advisory.fixed_in(version)
            if fixed is not None:
                yield f"{package} {version}: {advisory.name}, fixed in {fixed}: {advisory.title}"


def main(locks: list[str]) -> int:
    """Check the given pin files, or lock.txt; 1 when a pin is affected or was never looked up."""
    known = read_list()
    pins: dict[str, Version] = {}
    for path in [Path(lock) for lock in locks] or [LOCK]:
        pins |= read_pins(path)
    lines = list(findings(pins, known))
    print("\n".join([*lines, f"{len(pins)} pins, {sum(map(len, known.values()))} advisories, {len(lines)} findings"]))
    return int(bool(lines) or not pins)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
