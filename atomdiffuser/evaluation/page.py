"""The evaluation as files: CSV tables, one HTML page that needs nothing else, and the same in Markdown."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.2rem .7rem;text-align:right;"
    "border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}"
    "img{max-width:100%}"
)


def write_page(folder: Path, title: str, facts: dict[str, Any], sections: list[dict[str, Any]]) -> None:
    """Write `index.html`, `evaluation.md` and a CSV per table.

    Parameters
    ----------
    facts
        Shown at the top, name and value.
    sections
        Each with `title` and `text`, and any of `table` (DataFrame) with `name` (its CSV), and `figure` (PNG bytes).
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        "<p>" + "<br>".join(f"{html.escape(k)}: {html.escape(str(v))}" for k, v in facts.items()) + "</p>",
    ]
    text = [f"# {title}", *(f"- {k}: {v}" for k, v in facts.items())]
    for section in sections:
        body += [f"<h2>{html.escape(section['title'])}</h2>", f"<p>{html.escape(section['text'])}</p>"]
        text += ["", f"## {section['title']}", "", section["text"], ""]
        table = section.get("table")
        if table is not None:
            table.to_csv(folder / f"{section['name']}.csv", index=False)
            body.append(table.to_html(index=False, float_format=_number, border=0, na_rep=""))
            text.append(_markdown(table))
        if section.get("figure"):
            body.append(
                f'<img alt="{html.escape(section["title"])}" src="data:image/png;base64,'
                f'{base64.b64encode(section["figure"]).decode()}">'
            )
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    (folder / "index.html").write_text(head + "\n".join(body) + "</html>\n")
    (folder / "evaluation.md").write_text("\n".join(text) + "\n")


def damage_curves(rows: pd.DataFrame) -> bytes | None:
    """True and found damage over strength, a panel per kind; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    kinds = list(dict.fromkeys(rows.kind))
    figure = Figure(figsize=(4.2 * len(kinds), 3.4), layout="constrained")
    for k, kind in enumerate(kinds):
        axis = figure.add_subplot(1, len(kinds), k + 1)
        part = rows[rows.kind == kind]
        axis.plot(*_means(part, "true_damage"), "k--", label="true")
        for method in dict.fromkeys(part.method):
            axis.plot(*_means(part[part.method == method], "found_damage"), label=method)
        axis.set(title=kind, xlabel="strength", ylabel="mean loss")
        axis.legend(fontsize=7)
    return _png(figure)


def map_panels(maps: dict[str, dict[str, np.ndarray]]) -> bytes | None:
    """Maps side by side, a row per kind; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    columns = max(len(row) for row in maps.values())
    figure = Figure(figsize=(2.4 * columns, 2.6 * len(maps)), layout="constrained")
    for r, (kind, row) in enumerate(maps.items()):
        for c, (name, image) in enumerate(row.items()):
            axis = figure.add_subplot(len(maps), columns, r * columns + c + 1)
            axis.imshow(image, vmin=0, vmax=1.1, cmap="viridis")
            axis.set_title(f"{kind}: {name}", fontsize=7)
            axis.axis("off")
    return _png(figure)


def _means(rows: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    means = rows.groupby("strength")[column].mean()
    return means.index.to_numpy(), means.to_numpy()


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _number(value: float) -> str:
    return f"{value:.4g}"


def _markdown(table: pd.DataFrame) -> str:
    cell = lambda v: ("" if pd.isna(v) else _number(v)) if isinstance(v, float) else str(v)
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(cell(v) for v in row) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)
