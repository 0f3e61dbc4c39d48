"""config/config.yaml: a few keys of its own (`KEYS`) and one section of settings per stage.

`python -m atomdiffuser.workflow.config_file` writes config/config.yaml and its schema from the settings classes.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atomdiffuser.cluster import require_address
from atomdiffuser.config import STAGES, Settings, describe_error, from_mapping, stage_schema
from atomdiffuser.errors import SettingsError
from atomdiffuser.memory_limit import parse_size

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG_FILE = CHECKOUT / "config" / "config.yaml"
SCHEMA_FILE = CHECKOUT / "workflow" / "schemas" / "config.schema.yaml"
WIDTH = 118

KEYS = {
    "session": "Folder with the raw series; usually given on the command line: --config session=/path/to/session",
    "results": "Folder for the results; empty: results/ inside the session",
    "memory_limit": "Memory that each job keeps to, such as 2 GB; empty: as much as is fastest. Results are the same "
    "but for rounding, and for the seams of the windows that large frames are cut into where the limit is tight",
    "dask_scheduler": "Address of a dask.distributed scheduler, such as tcp://host:8786, whose workers register the "
    "pairs and map the decay of a series; empty: this machine does. Results are the same but for rounding",
}


def config_schema() -> dict[str, Any]:
    """Closed JSON schema of the workflow's configuration."""
    own = {name: {"type": ["string", "null"], "default": None, "description": text} for name, text in KEYS.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "description": "Configuration of the AtomDiffuser workflow",
        "type": "object",
        "properties": {**own, **{name: stage_schema(stage) for name, stage in STAGES.items()}},
        "additionalProperties": False,
    }


def read_config(config: Mapping[str, Any]) -> Settings:
    """Settings of all stages from the workflow's configuration.

    Numbers may arrive as text: YAML 1.1 takes 1e-3 for a string, and `--config` hands nested values over as strings.

    Raises
    ------
    SettingsError
        For unknown keys, wrong types and values out of range; names key, value and what is allowed.
    """
    import jsonschema

    schema = config_schema()
    values = {key: _typed(value, schema["properties"].get(key, {})) for key, value in config.items()}
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(values))
    if errors:
        unknown_key_first = min(errors, key=lambda e: (e.validator != "additionalProperties", [*map(str, e.path)]))
        raise SettingsError(describe_error(unknown_key_first))
    if values.get("memory_limit"):
        try:
            parse_size(values["memory_limit"])
        except SettingsError as error:
            raise SettingsError(f"memory_limit: {error}") from None
    if values.get("dask_scheduler"):
        require_address(values["dask_scheduler"])
    return Settings(**{name: from_mapping(stage, dict(values.get(name) or {})) for name, stage in STAGES.items()})


def _typed(value: Any, schema: Mapping[str, Any]) -> Any:
    """The value with text turned into the numbers that the schema asks for; what does not fit stays as it is."""
    if value is None and schema.get("type") == "object":
        return {}
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        return {key: _typed(v, properties.get(key, {})) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_typed(v, schema.get("items", {})) for v in value]
    kinds = [s.get("type") for s in (schema, *schema.get("anyOf", ()))]
    if isinstance(value, str) and ("integer" in kinds or "number" in kinds):
        try:
            value = float(value)
        except ValueError:
            return value
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and "integer" in kinds else value


def default_config_text() -> str:
    """config/config.yaml: every setting at its default, with help, unit and range."""
    lines = [
        "# AtomDiffuser: every setting at its default. Change them here, or keep your own file with only what differs",
        "# and pass it: snakemake … --configfile mine.yaml --config session=/path/to/session",
        "",
    ]
    for name, text in KEYS.items():
        lines += [*_comment(text, ""), f"{name}:", ""]
    for name, stage in STAGES.items():
        lines += [*_comment(stage.__doc__ or "", ""), f"{name}:"]
        schema = stage_schema(stage)["properties"]
        for field in dataclasses.fields(stage):
            text = schema[field.name]["description"] + range_text(schema[field.name])
            lines += [*_comment(text, "  "), f"  {field.name}: {_yaml(field.default)}"]
        lines.append("")
    return "\n".join(lines)


def schema_text() -> str:
    """workflow/schemas/config.schema.yaml."""
    import yaml

    body = yaml.safe_dump(config_schema(), sort_keys=False, allow_unicode=True, width=WIDTH)
    return f"# Written by `make schema` from atomdiffuser/config.py, not by hand.\n{body}"


def allowed_values(schema: Mapping[str, Any]) -> str:
    """Choices or range of a setting, in few words; empty where anything of its type goes."""
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return ", ".join(filter(None, map(allowed_values, schema["anyOf"])))
    if schema.get("type") == "array":
        return allowed_values(schema["items"])
    low, above, high = (schema.get(k) for k in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None and high is not None:
        return f"{low} to {high}"
    limits = (("≥", low), (">", above), ("≤", high))
    return ", ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)


def range_text(schema: Mapping[str, Any]) -> str:
    """`allowed_values` in brackets, to follow a description."""
    allowed = allowed_values(schema)
    return f" ({allowed})" if allowed else ""


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    for path, text in ((CONFIG_FILE, default_config_text()), (SCHEMA_FILE, schema_text())):
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(CHECKOUT)}")


if __name__ == "__main__":
    main()
