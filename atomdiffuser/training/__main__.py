"""`python -m atomdiffuser.training PRESET`: training where nothing but torch, numpy and safetensors is installed.

`python -m atomdiffuser.training join MAPS DRIFT --to FILE` makes one network of two whose parts were trained apart,
`python -m atomdiffuser.training finish FILE --to FILE` one whose second look is trained, and σ calibrated, afresh.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from atomdiffuser.errors import AtomDiffuserError
from atomdiffuser.model.checkpoint import join_models
from atomdiffuser.training.finishing import finish_file
from atomdiffuser.training.loop import train
from atomdiffuser.training.settings import parse_value, read_settings

CONFIG = Path("config/train.yaml")


def main(arguments: list[str] | None = None, *, progress: Callable[[int, int], None] | None = None) -> int:
    """Exit code 0 when the schedule is done, 3 when a limit came first, 1 after an error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["join"]:
        return _join(arguments[1:])
    if arguments[:1] == ["finish"]:
        return _finish(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m atomdiffuser.training", description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    options = parser.parse_args(arguments)
    try:
        changes = dict(_change(c) for c in options.changes)
        settings = read_settings(options.config, options.preset, changes)
        torch.set_flush_denormal(True)  # numbers too small to matter would be slow
        device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
        result = train(
            settings, options.folder, device=device, max_minutes=options.max_minutes, max_steps=options.max_steps,
            report=lambda line: print(line, file=sys.stderr, flush=True), progress=progress,
        )  # fmt: skip
    except AtomDiffuserError as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    print(f"step {result.step} of {result.total_steps or '?'}; weights: {result.weights}")
    return 0 if result.finished else 3


def _join(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m atomdiffuser.training join")
    parser.add_argument("maps", type=Path)
    parser.add_argument("drift", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        print(f"{join_models(options.maps, options.drift, options.to)}  {options.to}")
    except AtomDiffuserError as error:
        print(f"join: {error}", file=sys.stderr)
        return 1
    return 0


def _finish(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m atomdiffuser.training finish")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    report = lambda line: print(line, file=sys.stderr, flush=True)
    try:
        changes = dict(_change(c) for c in options.changes)
        print(f"{finish_file(options.weights, options.to, changes, torch.device(device), report)}  {options.to}")
    except AtomDiffuserError as error:
        print(f"finish: {error}", file=sys.stderr)
        return 1
    return 0


def _change(text: str) -> tuple[str, object]:
    from atomdiffuser.errors import SettingsError

    key, sign, value = text.partition("=")
    if not sign:
        raise SettingsError(f"--set {text!r} is not understood; expected KEY=VALUE")
    return key.strip(), parse_value(value.strip())


if __name__ == "__main__":
    sys.exit(main())
