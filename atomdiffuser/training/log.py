"""The training log: CSV files that a resumed run continues, and their curves where matplotlib is at hand."""

from __future__ import annotations

import csv
from pathlib import Path


class TrainingLog:
    """`log.csv` (losses) and `validation.csv` in a folder; rows after the step a run resumes from are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.rows: dict[str, list[dict[str, float]]] = {}
        for kind in ("log", "validation"):
            self.rows[kind] = [row for row in _read(self._path(kind)) if row["step"] <= step]
            self._rewrite(kind)

    def write(self, kind: str, step: int, elapsed_s: float, numbers: dict[str, float]) -> None:
        """Append a row."""
        row = {"step": float(step), "elapsed_s": round(elapsed_s, 2), **numbers}
        known = set(self.rows[kind][0]) if self.rows[kind] else set()
        self.rows[kind].append(row)
        if not known or set(row) - known:
            self._rewrite(kind)
            return
        with self._path(kind).open("a", newline="") as file:
            csv.DictWriter(file, self._columns(kind)).writerow(_plain(row))

    def last(self, kind: str) -> dict[str, float]:
        """The newest row; empty without any."""
        return self.rows[kind][-1] if self.rows[kind] else {}

    def plot(self) -> None:
        """Write curves.png; nothing where matplotlib is not installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        curves = [
            (kind, name)
            for kind in ("log", "validation")
            for name in self._columns(kind)
            if name not in ("step", "elapsed_s", "rate")
        ]
        if not curves:
            return
        rows = -(-len(curves) // 4)
        figure = Figure(figsize=(14, 2.4 * rows), layout="constrained")
        for k, (kind, name) in enumerate(curves):
            axis = figure.add_subplot(rows, 4, k + 1)
            points = [(r["step"], r[name]) for r in self.rows[kind] if name in r]
            axis.plot(*zip(*points, strict=True), lw=1, color="C0" if kind == "log" else "C1")
            axis.set_title(f"{kind}: {name}", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
        figure.savefig(self.folder / "curves.png", dpi=90)

    def _path(self, kind: str) -> Path:
        return self.folder / f"{kind}.csv"

    def _columns(self, kind: str) -> list[str]:
        names: dict[str, None] = {}
        for row in self.rows[kind]:
            names.update(dict.fromkeys(row))
        return list(names)

    def _rewrite(self, kind: str) -> None:
        if not self.rows[kind]:
            self._path(kind).unlink(missing_ok=True)
            return
        with self._path(kind).open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns(kind))
            writer.writeheader()
            writer.writerows(map(_plain, self.rows[kind]))


def _plain(row: dict[str, float]) -> dict[str, str]:
    return {k: f"{v:.7g}" for k, v in row.items()}


def _read(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
