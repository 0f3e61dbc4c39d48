"""Settings: one frozen dataclass per stage.

Each field carries its help text and its unit, range or choices. The JSON schema of config/config.yaml and the command
line flags of each stage are derived from these classes, so that the three cannot disagree.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from atomdiffuser.errors import SettingsError

FrameFlag = Literal["blank", "duplicate", "missing_rows", "saturated", "blur", "defocus", "jump"]


def setting(
    default: Any,
    help: str,
    *,
    unit: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    length: int | None = None,
) -> Any:
    """A dataclass field with what the schema, the flags and the documentation need to know."""
    metadata = dict(help=help, unit=unit, minimum=minimum, maximum=maximum, above=above, length=length)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ConvertSettings:
    """Raw file → frames.ome.zarr."""

    pyramid_levels: int = setting(2, "Halved copies stored for viewers", minimum=0, maximum=8)
    compression_level: int = setting(
        1, "Level of Blosc's Zstandard after a shuffle of bytes; 0 stores uncompressed", minimum=0, maximum=9
    )


@dataclass(frozen=True)
class RegisterSettings:
    """Frames → pairwise drift and one trajectory."""

    start: Literal["network", "correlation"] = setting(
        "network", "Where the fit of neighbours starts: the network's look at them too, or correlation peaks alone"
    )
    weights: str = setting("default", "The network's weights: a name of shipped ones, or the absolute path of a file")
    lags: tuple[int, ...] = setting((1, 2, 4, 8), "Frames between the two of a pair", unit="frames", minimum=1)
    max_drift_fraction: float = setting(
        0.33, "Largest drift between neighbours, as a share of the shorter frame side", above=0.0, maximum=0.9
    )
    field_nodes: int = setting(
        8, "Nodes per axis of the smooth decay fields fitted with the drift", minimum=2, maximum=24
    )
    max_iterations: int = setting(30, "Gauss–Newton steps per pair at most", minimum=1, maximum=500)
    tolerance_px: float = setting(1e-3, "A fit has converged when the drift changes by less", unit="px", above=0.0)
    groupwise_rounds: int = setting(
        2, "Times that all frames are fitted to the mean of the others after the pairs", minimum=0, maximum=20
    )
    hop_probability_limit: float = setting(
        0.05,
        "A pair whose registration may be off by a lattice vector with more than this probability is flagged",
        minimum=0.0,
        maximum=1.0,
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where the fit runs")
    channels: Literal["shared", "own"] = setting(
        "shared",
        "Whether the detectors of one acquisition share the drift of one of them (the one of best signal, or "
        "drift_channel in session.yaml) or have each its own",
    )
    excluded_flags: tuple[FrameFlag | Literal["none"], ...] = setting(
        ("blank", "duplicate", "missing_rows", "blur", "defocus"),
        "Frames with one of these flags are not used; with the others they are, and carry the flag",
    )
    blank_signal: float = setting(
        0.05,
        "A frame without structure and with less than this share of the usual signal is blank",
        above=0.0,
        maximum=1.0,
    )
    duplicate_rows: float = setting(
        0.5, "A frame with more than this share of the rows of the one before is a duplicate", above=0.0, maximum=1.0
    )
    missing_rows: float = setting(
        0.02, "A frame with more than this share of rows without contents has missing rows", minimum=0.0, maximum=1.0
    )
    saturated_fraction: float = setting(
        0.005,
        "A frame with more than this share of its pixels at the detector's limit is saturated",
        minimum=0.0,
        maximum=1.0,
    )
    least_sharpness: float = setting(
        0.8,
        "A frame is blurred or out of focus when its transfer leaves less than this share of the structure's amplitude "
        "in the frames around it",
        above=0.0,
        maximum=1.0,
    )
    jump_fraction: float = setting(
        0.02,
        "A step between frames is a jump when it differs from the usual one by this share of the shorter side, and by "
        "eight times the steps' spread",
        above=0.0,
        maximum=1.0,
    )


@dataclass(frozen=True)
class DecaySettings:
    """Aligned pairs → intensity and contrast maps."""

    map_stride: int = setting(
        4, "Maps are stored this many times coarser than the frames", unit="px", minimum=1, maximum=64
    )
    method: Literal["network", "regression"] = setting(
        "network", "Maps by the trained network, or by local regression as without it"
    )
    weights: str = setting("default", "The network's weights: a name of shipped ones, or the absolute path of a file")
    bandwidth_px: float | Literal["auto"] = setting(
        "auto",
        "Standard deviation of the local regression's window; auto chooses it from noise and lattice",
        unit="px",
        above=0.0,
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where the maps are computed")


@dataclass(frozen=True)
class DamageSettings:
    """Raw frames, trajectory and maps → damage per region, critical fluence."""

    grid: tuple[int, ...] = setting((3, 3), "Rows and columns of the grid of regions", minimum=1, maximum=64, length=2)
    min_coverage: float = setting(
        0.5, "A region seen less than this in a frame has no value there", minimum=0.0, maximum=1.0
    )
    min_span_of_critical: float = setting(
        0.3, "Below this share of the fitted critical fluence only a lower bound is given", above=0.0, maximum=10.0
    )
    area_threshold: float = setting(
        0.5, "The share of a region whose contrast map is below this is reported", above=0.0, maximum=1.0
    )
    tolerance_percent: float = setting(
        5.0, "Frames that have changed by less can be summed", unit="%", above=0.0, maximum=100.0
    )
    bootstrap: int = setting(
        200, "Replicates from which intervals are found; 400 steady their last digit", minimum=40, maximum=10000
    )
    min_region_px: int = setting(
        200, "A region of fewer pixels is listed, but nothing is claimed of it", unit="px", minimum=1
    )
    segmentation: Literal["auto", "none"] = setting(
        "auto", "Whether crystal, amorphous material, vacuum and bands along its edge become regions of their own"
    )
    edge_band_nm: float = setting(
        2.0,
        "Width of the two bands along the edge to vacuum; in px where the pixel size is unknown: 50 times it",
        unit="nm",
        above=0.0,
    )
    dark_level: Literal["known", "auto"] = setting(
        "auto",
        "Dark level that neither session.yaml nor the file states: taken for 0 (known), or found from vacuum or noise",
    )
    gaps: Literal["not_counted", "counted"] = setting(
        "not_counted",
        "Flyback and waiting between frames count towards the fluence where the beam stayed on the sample",
    )
    current_sigma_percent: float = setting(
        10.0,
        "1 σ of the beam current's calibration where session.yaml states none",
        unit="%",
        minimum=0.0,
        maximum=100.0,
    )
    spot_shells: int = setting(3, "Shells of Fourier spots that are followed; 0 for none", minimum=0, maximum=12)
    columns: Literal["auto", "none"] = setting("auto", "Whether atomic columns are followed where they are resolved")


@dataclass(frozen=True)
class AlignSettings:
    """Raw frames and trajectory → drift-corrected series."""

    interpolation: Literal["nearest", "linear", "cubic"] = setting(
        "linear", "Linear neither rings nor goes negative; cubic keeps more detail and may do both"
    )
    extent: Literal["reference", "intersection", "union"] = setting(
        "reference",
        "Grid of the aligned frames: the reference frame's field, what all frames saw, or what any frame saw",
    )
    line_jitter: Literal["kept", "corrected"] = setting(
        "kept", "Whether the offsets of single scan lines are taken out too, as far as they are above the noise"
    )


@dataclass(frozen=True)
class ReportSettings:
    """Results → HTML pages."""

    image_px: int = setting(512, "Longer side of images in a page", unit="px", minimum=64, maximum=4096)
    max_states: int = setting(12, "Measured map states carried by a page at most", minimum=2, maximum=200)
    warn_loss_percent: float = setting(
        20.0, "Change from which a series is marked for a look", unit="%", minimum=0.0, maximum=100.0
    )
    bad_loss_percent: float = setting(
        63.0, "Loss from which a series is marked as not usable as it is; 63 % is the fall to 1/e", unit="%",
        minimum=0.0, maximum=100.0,
    )  # fmt: skip
    warn_closure_px: float = setting(
        0.5, "Closure error from which a series is marked for a look", unit="px", minimum=0.0
    )
    bad_closure_px: float = setting(
        2.0, "Closure error from which a series is marked as not usable as it is", unit="px", minimum=0.0
    )
    warn_excluded_percent: float = setting(
        25.0, "Share of frames left out above which a series is marked for a look", unit="%", minimum=0.0, maximum=100.0
    )
    warn_sigma_percent: float = setting(
        20.0, "Decay maps with a larger 1 σ are drawn as uncertain", unit="%", above=0.0
    )


@dataclass(frozen=True)
class Settings:
    """All stages."""

    convert: ConvertSettings = field(default_factory=ConvertSettings)
    register: RegisterSettings = field(default_factory=RegisterSettings)
    decay: DecaySettings = field(default_factory=DecaySettings)
    damage: DamageSettings = field(default_factory=DamageSettings)
    align: AlignSettings = field(default_factory=AlignSettings)
    report: ReportSettings = field(default_factory=ReportSettings)


STAGES: dict[str, type] = {f.name: f.default_factory for f in dataclasses.fields(Settings)}  # type: ignore[misc]


def field_schema(stage: type, name: str) -> dict[str, Any]:
    """JSON schema of one setting: type, choices, range, default and description."""
    f = next(f for f in dataclasses.fields(stage) if f.name == name)
    schema = _type_schema(typing.get_type_hints(stage)[name], f.metadata)
    unit = f.metadata["unit"]
    default = list(f.default) if isinstance(f.default, tuple) else f.default
    return {**schema, "default": default, "description": f.metadata["help"] + (f" [{unit}]" if unit else "")}


def stage_schema(stage: type) -> dict[str, Any]:
    """Closed JSON schema of one stage's settings."""
    properties = {f.name: field_schema(stage, f.name) for f in dataclasses.fields(stage)}
    return {"type": "object", "description": stage.__doc__, "properties": properties, "additionalProperties": False}


def from_mapping(stage: type, values: dict[str, Any]) -> Any:
    """Settings of one stage from plain values; unknown keys and values out of range raise SettingsError."""
    import jsonschema

    for error in sorted(
        jsonschema.Draft202012Validator(stage_schema(stage)).iter_errors(values), key=lambda e: list(e.path)
    ):
        raise SettingsError(describe_error(error))
    return stage(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def describe_error(error: Any, prefix: str = "") -> str:
    """One line for a schema violation: the key, its value and what is allowed."""
    import difflib

    where = ".".join([*([prefix] if prefix else []), *map(str, error.absolute_path)])
    if error.validator == "additionalProperties":
        allowed = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(allowed), key=str)
        near = difflib.get_close_matches(str(unknown[0]), allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        key = f"{where}.{unknown[0]}" if where else str(unknown[0])
        return f"{key}: unknown key; {hint}allowed here: {', '.join(allowed)}"
    return f"{where or 'config'}: {error.instance!r} is not allowed; expected {_allowed(error.schema)}"


def _type_schema(hint: Any, limits: typing.Mapping[str, Any]) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type_schema(a, limits) for a in args]}
    if origin is tuple:
        length = limits["length"]
        size = {"minItems": length, "maxItems": length} if length else {"minItems": 1}
        return {"type": "array", "items": _type_schema(args[0], limits), **size}
    schema: dict[str, Any] = {"type": {int: "integer", float: "number", str: "string", bool: "boolean"}[hint]}
    if hint is str:
        schema["minLength"] = 1
    if hint in (int, float):
        for key, keyword in (("minimum", "minimum"), ("maximum", "maximum"), ("above", "exclusiveMinimum")):
            if limits.get(key) is not None:
                schema[keyword] = limits[key]
    return schema


def _allowed(schema: typing.Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_allowed(s) for s in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array":
        count = f"{schema['maxItems']} values" if "maxItems" in schema else "values"
        return f"a list of {count}, each {_allowed(schema['items'])}"
    ranges = [
        f"{sign} {schema[k]}"
        for k, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if k in schema
    ]
    return " ".join([str(schema.get("type", "another form")), *ranges])
