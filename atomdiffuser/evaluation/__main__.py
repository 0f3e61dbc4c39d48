"""`python -m atomdiffuser.evaluation WEIGHTS FOLDER`: evaluation on a machine without the command line's libraries."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from atomdiffuser.errors import AtomDiffuserError
from atomdiffuser.evaluation.benchmark import BenchmarkOptions
from atomdiffuser.evaluation.evaluate import evaluate


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 1 after an error."""
    parser = argparse.ArgumentParser(prog="python -m atomdiffuser.evaluation", description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pairs", type=int, default=BenchmarkOptions.pairs)
    parser.add_argument("--no-classical", action="store_true")
    parser.add_argument("--published", type=Path)
    parser.add_argument("--block", type=Path)
    options = parser.parse_args(arguments)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    baselines = {n: p for n, p in (("published network", options.published), ("block network", options.block)) if p}
    try:
        evaluate(
            options.weights, options.folder, baselines=baselines,
            options=replace(BenchmarkOptions(), pairs=options.pairs),
            device=device, classical=not options.no_classical,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    except AtomDiffuserError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
