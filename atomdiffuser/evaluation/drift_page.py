"""The drift benchmark as files: every pair, the summary, the comparison with the best peer, figure and page."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from atomdiffuser._version import __version__
from atomdiffuser.evaluation.drift import (
    CONDITIONS,
    NOTHING,
    OURS,
    DriftBenchmark,
    compare_with_best_peer,
    run_benchmark,
    summarise,
)
from atomdiffuser.evaluation.page import write_page
from atomdiffuser.evaluation.peers import PEERS, available_peers

DISTRIBUTIONS = {
    "cv2": "opencv-python-headless", "pystackreg": "pystackreg", "itk.elxParameterObjectPython": "itk-elastix",
    "kornia": "kornia", "skimage": "scikit-image", "hyperspy": "hyperspy",
}  # fmt: skip
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8c6d31")
MARKERS = "osD^vP*"
TOP = 3000.0
"""Errors over the bound are drawn up to here; no answer lies here too."""


def evaluate_drift(
    folder: Path, options: DriftBenchmark, *, peers: bool = True, report: Callable[[str], None] = print
) -> str:
    """Run the benchmark and write `pairs.csv`, `drift.csv`, `comparison.csv`, `drift.png`, `index.html`.

    Returns the tables as text. Tools that are not installed are named and left out.
    """
    methods, absent = available_peers() if peers else ({}, {})
    for name, why in absent.items():
        report(f"{name} is left out: {why}")
    folder.mkdir(parents=True, exist_ok=True)
    pairs = run_benchmark(options, methods, lambda done, total: report(f"series {done} of {total}"))
    table, facts = summarise(pairs), _facts(options, absent)
    comparison = compare_with_best_peer(table) if methods else None
    pairs.to_csv(folder / "pairs.csv", index=False)
    figure = drift_figure(table)
    if figure:
        (folder / "drift.png").write_bytes(figure)
    sections = [
        {"title": "Error over the bound", "figure": figure, "name": "drift", "table": table,
         "text": "RMS displacement error over the frame divided by the Cramér–Rao bound, median of the pairs; an "
                 "estimator exactly at the bound has median 0.94 and 95th percentile 1.45. gross: more than 1 px off, "
                 "steps of the lattice (hops) counted apart. no_answer: the tool itself said so; infinite in the "
                 "quantiles. seconds: median a pair."},
    ]  # fmt: skip
    if comparison is not None:
        text = "Median error over the bound beside that of the peer that is best on this row; below 1 ours is closer."
        sections.append({"title": "Beside the best peer", "name": "comparison", "table": comparison, "text": text})
    settings = pd.DataFrame([
        {"method": p.name, "motion": p.motion, "setting": p.setting, "version": _version(DISTRIBUTIONS[p.module])}
        for p in PEERS if p.name in methods
    ])  # fmt: skip
    if len(settings):
        sections.append({"title": "Settings of the tools", "name": "tools", "table": settings,
                         "text": "Each as its documentation recommends for images of unknown motion."})  # fmt: skip
    write_page(folder, "Drift of pairs against the physical limit", facts, sections)
    return "\n\n".join(_text(t) for t in (wide_table(table), comparison) if t is not None)


def wide_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row per case, a column per method: median error over the bound, with gross failures, hops and no answers."""

    def cell(row: pd.Series) -> str:
        counts = [f"{row[c]}{letter}" for c, letter in (("gross", "g"), ("hops", "h"), ("no_answer", "n")) if row[c]]
        value = row["median_over_bound"]
        return " ".join([f"{value:.3g}" if np.isfinite(value) else "none", *counts])

    cells = table.assign(cell=table.apply(cell, axis=1))
    order = list(dict.fromkeys(table["method"]))
    wide = cells.pivot(index=CONDITIONS, columns="method", values="cell")[order]
    cases = list(dict.fromkeys(map(tuple, table[CONDITIONS].itertuples(index=False))))
    return wide.loc[cases].reset_index().rename_axis(columns=None)


def drift_figure(table: pd.DataFrame) -> bytes | None:
    """Median error over the bound against counts, a panel per specimen and kind of pair (PNG bytes)."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    import io

    specimens = list(dict.fromkeys(table["specimen"]))
    kinds = sorted(set(zip(table["damage"], table["frames_apart"], strict=True)))
    methods = [m for m in dict.fromkeys(table["method"]) if m != NOTHING]
    peers = [m for m in methods if m != OURS]
    levels = sorted(set(table["electrons_per_px"]))
    figure = Figure(figsize=(2.9 * len(kinds) + 1.8, 2.5 * len(specimens) + 0.5), layout="constrained")
    axes = figure.subplots(len(specimens), len(kinds), sharex=True, sharey=True, squeeze=False)
    for i, specimen in enumerate(specimens):
        for j, (damage, apart) in enumerate(kinds):
            axis = axes[i, j]
            part = table[(table.specimen == specimen) & (table.damage == damage) & (table.frames_apart == apart)]
            values = part.pivot(index="electrons_per_px", columns="method", values="median_over_bound").clip(upper=TOP)
            axis.axhspan(0.3, 0.94, color="#eeeeee", zorder=0)
            axis.fill_between(range(len(levels)), values[NOTHING], TOP * 2, color="#f6ece4", zorder=0, lw=0)
            for k, name in enumerate(peers):
                axis.plot(values[name].to_numpy(), color=COLOURS[k % 7], marker=MARKERS[k % 7], ms=4, lw=1, label=name)
            axis.plot(values[OURS].to_numpy(), color="black", marker="o", ms=5, lw=2.2, label=OURS)
            axis.set(yscale="log", ylim=(0.4, TOP * 1.2), xlim=(-0.15, len(levels) - 0.85))
            axis.set_xticks(range(len(levels)), [f"{v:g}" for v in levels])
            if i == 0:
                frames = "neighbours" if apart == 1 else f"{apart} frames apart"
                axis.set_title(f"{frames}, {'damaged' if damage else 'intact'}", fontsize=9)
            if j == 0:
                axis.set_ylabel(f"{specimen}\nerror / bound", fontsize=9)
            if i == len(specimens) - 1:
                axis.set_xlabel("electrons per pixel", fontsize=9)
            axis.tick_params(labelsize=8)
            axis.grid(axis="y", color="#dddddd", lw=0.5)
    axes[0, 0].text(0.03, 0.97, "worse than\nno correction", transform=axes[0, 0].transAxes, va="top", fontsize=7)
    axes[0, 0].text(0.97, 0.02, "at the bound", transform=axes[0, 0].transAxes, ha="right", fontsize=7)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _facts(options: DriftBenchmark, absent: dict[str, str]) -> dict[str, Any]:
    return {
        "version": __version__,
        "frames": f"{options.shape[0]} × {options.shape[1]} px, {options.drift_px_per_frame} px of steady drift and "
                  f"{options.random_walk_px} px of random walk a frame, {options.rotation_deg_per_frame}° a frame",
        "damage": f"holes in intensity and lattice, critical fluence {options.critical_fluence:g} e⁻/Å² on average, "
                  "1000 e⁻/Å² a frame",
        "series a case": options.seeds,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__} on "
                   f"{torch.get_num_threads()} threads",
        "not installed": ", ".join(absent) or "none",
    }  # fmt: skip


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _text(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format="{:.3g}".format)
