"""Settings of a training run, and the small part of YAML that config/train.yaml is written in.

A machine that only trains may have no YAML library, so the file keeps to what `parse_yaml` reads: nested mappings by
indentation, numbers, words, true/false/null and lists in brackets.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomdiffuser.errors import SettingsError
from atomdiffuser.model.config import ModelConfig
from atomdiffuser.simulation.pairs import PairRanges

NETWORKS = ("atomdiffuser", "published", "block")
PARTS = ("drift", "maps")
PRECISIONS = ("auto", "float32", "bfloat16")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class TrainSettings:
    """One run.

    Attributes
    ----------
    network
        One of `NETWORKS`; the last two are baselines.
    parts
        What is trained, of `PARTS`; they share no weights, so they may be trained side by side and joined.
    start_from
        Weights that the network begins with: a file, or "default" for the shipped ones; empty takes fresh ones.
    precision
        Of the networks' layers: bfloat16 where the processor is built for it (GPUs, AMX, AVX512-BF16), else float32.
    steps, minutes
        Length of the schedule. With `steps` 0 it is fixed by the speed of the first hundred steps so that it lasts
        about `minutes`, and kept from then on, also when the run is resumed.
    shape, batch
        Size of the frames, and pairs a step.
    chunk, repeats
        Steps whose pairs are simulated at once, and how often they are used, each time with new noise.
    intermediate
        Share of pairs asked at a τ below 1.
    aligned_within_px, start_error_px
        The decoder sees the network's own drift, when that is trained and better than the first, else the true one with
        an error whose standard deviation is drawn evenly up to the second: what the statistical refinement leaves.
    map_weight, shift_weight, likelihood_weight, drift_scale_px
        Weights of the losses beside the affine's, and what that is measured in.
    beta
        Of intensity and of contrast: how much more places count whose σ is large, see `losses.map_loss`. With 0 pairs
        to which nothing happened are learned as well as damaged ones.
    unseen_weight
        Weight of map pixels where there is no signal to see, relative to others.
    ema
        Share of the averaged weights that a step keeps.
    validate_every, validate_pairs
        Steps between validations on named crystals, and pairs of each.
    look_pairs, look_steps
        Pairs, and steps over cells of them, that the second look at intensity is trained with after the rest; it is
        left out where either is 0.
    calibrate_pairs
        Pairs of each fluence that the σ of the maps is calibrated with at the end; 0 leaves it as it is.
    checkpoint_minutes
        Between two checkpoints.
    """

    network: str = "atomdiffuser"
    parts: tuple[str, ...] = PARTS
    precision: str = "auto"
    start_from: str = ""
    seed: int = 1
    steps: int = 0
    minutes: float = 120.0
    shape: tuple[int, int] = (256, 256)
    batch: int = 64
    chunk: int = 1
    repeats: int = 1
    learning_rate: float = 1e-3
    lowest_rate_share: float = 0.02
    warm_up: int = 300
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    intermediate: float = 0.25
    aligned_within_px: float = 1.0
    start_error_px: float = 0.2
    map_weight: float = 0.25
    shift_weight: float = 0.3
    likelihood_weight: float = 0.05
    drift_scale_px: float = 0.2
    beta: tuple[float, float] = (0.0, 0.5)
    unseen_weight: float = 0.05
    validate_every: int = 500
    validate_pairs: int = 32
    look_pairs: int = 4096
    look_steps: int = 1500
    calibrate_pairs: int = 288
    validate_electrons: float = 20.0
    validate_crystals: tuple[str, ...] = ("SrTiO3", "Si", "LLZO[100]", "LLZO[111]", "graphene", "nanoparticle")
    checkpoint_minutes: float = 3.0
    compile: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    ranges: PairRanges = field(default_factory=PairRanges)

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise SettingsError(f"network {self.network!r} is not known; known are {', '.join(NETWORKS)}")
        if not self.parts or set(self.parts) - set(PARTS):
            raise SettingsError(f"parts is {self.parts}, expected some of {', '.join(PARTS)}")
        if self.precision not in PRECISIONS:
            raise SettingsError(f"precision {self.precision!r} is not known; known are {', '.join(PRECISIONS)}")
        for key in ("batch", "chunk", "repeats", "validate_every", "validate_pairs"):
            if getattr(self, key) < 1:
                raise SettingsError(f"{key} is {getattr(self, key)}, expected at least 1")
        for key in ("look_pairs", "look_steps", "calibrate_pairs"):
            if getattr(self, key) < 0:
                raise SettingsError(f"{key} is {getattr(self, key)}, expected 0 or more")
        if not isinstance(self.beta, tuple) or len(self.beta) != 2:
            raise SettingsError(f"beta is {self.beta}, expected two numbers, of intensity and of contrast")
        if min(self.shape) < 32:
            raise SettingsError(f"shape is {self.shape}, expected at least 32 pixels each")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["model"], values["ranges"] = self.model.to_dict(), dataclasses.asdict(self.ranges)
        return _plain(values)


def read_settings(path: Path, preset: str, changes: dict[str, Any] | None = None) -> TrainSettings:
    """A preset of a file like config/train.yaml; `changes` win, dotted names reach inside (`model.step_width`)."""
    presets = parse_yaml(path.read_text())
    if preset not in presets:
        raise SettingsError(f"preset {preset!r} is not in {path}; there are {', '.join(sorted(presets))}")
    return settings_from(changed(presets[preset] or {}, changes or {}))


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Plain values with changes, whose dotted names reach inside."""
    values = dict(values)
    for name, value in changes.items():
        *outer, last = name.split(".")
        place = values
        for part in outer:
            place[part] = dict(place.get(part) or {})
            place = place[part]
        place[last] = value
    return values


def settings_from(values: dict[str, Any]) -> TrainSettings:
    """Settings from plain values; unknown keys raise SettingsError."""
    values = dict(values)
    model = ModelConfig.from_dict(values.pop("model", None) or {})
    ranges = _checked(PairRanges, values.pop("ranges", None) or {}, "ranges.")
    known = _checked(TrainSettings, values, "")
    return dataclasses.replace(known, model=model, ranges=ranges)


def parse_yaml(text: str) -> dict[str, Any]:
    """The small part of YAML described above, as plain values.

    Raises
    ------
    SettingsError
        With the number of a line that is not understood.
    """
    root: dict[str, Any] = {}
    open_maps: list[tuple[int, dict[str, Any]]] = [(-1, root)]
    for number, raw in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip(" "))
        key, colon, value = line.strip().partition(":")
        if not colon or "\t" in raw[:indent]:
            raise SettingsError(f"line {number}: {raw.strip()!r} is not understood; expected 'key: value'")
        while open_maps[-1][0] >= indent:
            open_maps.pop()
        parent = open_maps[-1][1]
        if value.strip():
            parent[key.strip()] = parse_value(value.strip())
        else:
            parent[key.strip()] = {}
            open_maps.append((indent, parent[key.strip()]))
    return root


def parse_value(text: str) -> Any:
    """One value: number, word, true, false, null or a list in brackets."""
    if text.startswith("[") and text.endswith("]"):
        inner = re.findall(r"\"[^\"]*\"|'[^']*'|[^,]+", text[1:-1])
        return [parse_value(part.strip()) for part in inner if part.strip()]
    if text[:1] in "\"'" and text[-1:] == text[:1]:
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if text in ("null", "~"):
        return None
    if NUMBER.fullmatch(text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    return text


def _checked(kind: type, values: dict[str, Any], prefix: str) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise SettingsError(f"{prefix}{unknown[0]}: unknown key; allowed are {', '.join(sorted(known))}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
