"""The whole evaluation of trained weights: controlled experiment, by fluence, between frames; tables and a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from atomdiffuser._version import __version__
from atomdiffuser.evaluation.benchmark import BenchmarkOptions, between_frames, by_fluence, by_pattern, intervals
from atomdiffuser.evaluation.controlled import (
    PUBLISHED_BASELINE_ERROR,
    PUBLISHED_ERROR,
    controlled_experiment,
    controlled_summary,
)
from atomdiffuser.evaluation.methods import (
    Method,
    load_baseline,
    local_regression,
    network_method,
    nothing_happened,
    oracle_regression,
    refined_method,
    single_map_method,
)
from atomdiffuser.evaluation.page import damage_curves, map_panels, write_page
from atomdiffuser.model.checkpoint import load_model, model_card, weights_hash, weights_path


def evaluate(
    weights: Path | str | None, folder: Path, *, baselines: dict[str, Path] | None = None,
    options: BenchmarkOptions | None = None, seeds: tuple[int, ...] = (11, 12, 13), device: torch.device | str = "cpu",
    classical: bool = True, report: Callable[[str], None] = print,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Judge weights and write `index.html`, `evaluation.md` and tables into `folder`.

    Parameters
    ----------
    weights
        As in `load_model`.
    baselines
        Trained baseline networks by the name they are shown with.
    options, seeds
        What is simulated.
    classical
        Whether local regression runs beside them; it is most of the time.
    """
    options = options or BenchmarkOptions()
    model = load_model(weights, device=device)
    networks: dict[str, Method] = {"AtomDiffuser": refined_method(model, str(weights_path(weights)))}
    for name, path in (baselines or {}).items():
        networks[name] = single_map_method(load_baseline(path).to(device))
    regression: dict[str, Method] = {"local regression": local_regression} if classical else {}
    oracle: dict[str, Method] = {"oracle local regression": oracle_regression} if classical else {}

    report("controlled experiment")
    rows, maps = controlled_experiment(networks | regression, seeds=seeds, shape=options.shape, device=device)
    controlled = controlled_summary(rows)
    known = {"published": PUBLISHED_ERROR, "published baseline": PUBLISHED_BASELINE_ERROR}
    literature = pd.DataFrame(
        [{"method": f"{m} (literature)", "kind": k, "damage_mae": v} for m, t in known.items() for k, v in t.items()]
    )
    report("by fluence")
    others = {
        "network alone": network_method(model),
        "AtomDiffuser, drift given": network_method(model, given_drift=True),
    }
    methods = networks | others | regression | oracle
    fluence = by_fluence(
        methods | {"nothing happened": nothing_happened}, options, device=device,
        progress=lambda done, total: report(f"by fluence: {done} of {total}"),
    )  # fmt: skip
    held = intervals(
        model, options, device=device, progress=lambda done, total: report(f"intervals: {done} of {total}")
    )
    report("by pattern")
    pattern = by_pattern(
        networks | oracle, replace(options, pairs=max(1, options.pairs // 2)), device=device,
        progress=lambda done, total: report(f"by pattern: {done} of {total}"),
    )  # fmt: skip
    report("between frames")
    between = between_frames(model, options, device=device)
    tables = {
        "controlled": pd.concat([controlled, literature]),
        "controlled_frames": rows,
        "by_fluence": fluence,
        "intervals": held,
        "by_pattern": pattern,
        "between_frames": between,
    }

    training = model_card(weights)["training"]
    training = training.get("maps", training)  # of a network whose parts were trained apart
    facts = {
        "version": __version__, "weights (SHA-256)": weights_hash(weights), "steps": training.get("step", "unknown"),
        "trained on": training.get("device", "unknown"), "frames": f"{options.shape[0]} × {options.shape[1]} px",
    }  # fmt: skip
    rows.to_csv(_made(folder) / "controlled_frames.csv", index=False)
    write_page(folder, "Evaluation of AtomDiffuser", facts, [
        {"title": "Controlled experiment", "name": "controlled", "table": tables["controlled"],
         "figure": damage_curves(rows),
         "text": "One image, ten frames of strength 0 to 0.9, no motion. damage_mae is the mean absolute error of the "
                 "frame's mean loss, map_mae that of the map, zero_bias the mean where nothing happened."},
        {"title": "Maps at strength 0.9", "figure": map_panels(maps), "text": "The intensity map of the last frame."},
        {"title": "By fluence", "name": "by_fluence", "table": fluence,
         "text": "Crystals that training never showed, drift estimated unless given: by the network and then the "
                 "statistical fit, or by the network alone. Intensity is judged where there "
                 "is a mean signal, contrast where there is lattice. Local regression is given the true drift; oracle "
                 "means that the truth chose its bandwidth."},
        {"title": "Intervals", "name": "intervals", "table": held,
         "text": "How many of the true values the 95 % intervals hold, on many damaged pairs, the true drift given."},
        {"title": "By pattern", "name": "by_pattern", "table": pattern,
         "text": "At 20 electrons a pixel, by the pattern of the damage."},
        {"title": "Between frames", "name": "between_frames", "table": between,
         "text": "States at τ between two frames at 20 electrons a pixel against the simulated truth, whose kinetics "
                 "two frames cannot tell: exponential, linear, and what the network learned to expect."},
    ])  # fmt: skip
    return tables


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
