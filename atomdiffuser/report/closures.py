"""Closed loops of three frames: a → b → c must lead where a → c leads."""

from __future__ import annotations

import numpy as np
import pandas as pd

AFFINE_COLUMNS = ["a_yy", "a_yx", "a_y", "a_xy", "a_xx", "a_x"]


def loop_closures(pairs: pd.DataFrame, frame_shape: tuple[int, int]) -> pd.DataFrame:
    """Every loop of three frames whose pairs were all used: `first`, `middle`, `last`, `closure_px`.

    Parameters
    ----------
    pairs
        pairs.parquet.
    frame_shape
        (y, x) [px]; the closure is the root mean square over the frame of the distance between both ways.

    Returns
    -------
    table
        Largest closure first; empty when no loop closes. Errors of single frames cancel around a loop, so closures find
        lattice hops and outliers, not accuracy.
    """
    used = pairs[pairs["valid"]]
    numbers = used[AFFINE_COLUMNS].to_numpy(float).reshape(-1, 2, 3)
    affines = {
        (int(r), int(m)): np.vstack([a, [0.0, 0.0, 1.0]])
        for r, m, a in zip(used["reference"], used["moving"], numbers, strict=True)
        if np.isfinite(a).all()
    }
    following: dict[int, list[int]] = {}
    for a, b in affines:
        following.setdefault(a, []).append(b)
    y, x = (np.linspace(0, n - 1, 5) for n in frame_shape)
    points = np.stack([*(g.ravel() for g in np.meshgrid(y, x, indexing="ij")), np.ones(25)])
    rows = []
    for (a, b), b_from_a in affines.items():
        for c in following.get(b, []):
            if (a, c) in affines:
                apart = (affines[b, c] @ b_from_a - affines[a, c])[:2] @ points
                rows.append((a, b, c, float(np.sqrt((apart**2).sum(0).mean()))))
    table = pd.DataFrame(rows, columns=["first", "middle", "last", "closure_px"])
    return table.sort_values("closure_px", ascending=False, ignore_index=True)
