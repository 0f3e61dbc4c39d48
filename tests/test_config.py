"""config/config.yaml, its schema and the settings classes say the same; what is not allowed is named in one line."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
import yaml

from atomdiffuser.config import STAGES, Settings
from atomdiffuser.errors import SettingsError
from atomdiffuser.workflow.config_file import CONFIG_FILE, KEYS, SCHEMA_FILE, config_schema, read_config, schema_text


def shipped() -> dict[str, Any]:
    return yaml.safe_load(CONFIG_FILE.read_text(encoding="utf-8"))


def test_shipped_schema_is_the_one_of_the_settings_classes() -> None:
    assert yaml.safe_load(SCHEMA_FILE.read_text(encoding="utf-8")) == config_schema()
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_shipped_config_holds_every_default_and_nothing_else() -> None:
    assert read_config(shipped()) == Settings()
    assert list(shipped()) == [*KEYS, *STAGES]
    for name, stage in STAGES.items():
        assert list(shipped()[name]) == list(stage.__dataclass_fields__), name


def test_schema_is_valid_and_closed_at_every_level() -> None:
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    sections = [schema, *(schema["properties"][name] for name in STAGES)]
    assert all(section["additionalProperties"] is False for section in sections)


def test_every_setting_has_a_description_and_a_range_or_choices() -> None:
    for name in STAGES:
        for key, field in config_schema()["properties"][name]["properties"].items():
            assert field["description"], (name, key)
            assert re.search("enum|minimum|exclusiveMinimum|minLength", str(field)), f"{name}.{key} allows anything"


def test_every_line_of_the_shipped_config_is_explained() -> None:
    lines = CONFIG_FILE.read_text(encoding="utf-8").splitlines()
    for above, line in pairwise(lines):
        if re.match(r"\s*\w+:", line):
            assert above.lstrip().startswith("#"), line


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sesion": "x"}, "sesion: unknown key; did you mean 'session'?"),
        ({"damage": {"gird": [2, 2]}}, "damage.gird: unknown key; did you mean 'grid'?"),
        ({"damage": {"grid": [2, 0]}}, "damage.grid.1: 0 is not allowed; expected integer ≥ 1"),
        ({"register": {"device": "tpu"}}, "register.device: 'tpu' is not allowed; expected 'auto' or 'cpu' or 'cuda'"),
        ({"register": {"tolerance_px": "small"}}, "register.tolerance_px: 'small' is not allowed; expected number > 0"),
        ({"decay": {"map_stride": 2.5}}, "decay.map_stride: 2.5 is not allowed; expected integer"),
        ({"damage": 3}, "damage: 3 is not allowed; expected object"),
    ],
)
def test_what_is_not_allowed_is_named_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_config(config)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_named_before_a_wrong_value() -> None:
    with pytest.raises(SettingsError, match="grdi: unknown key"):
        read_config({"align": {"extent": "none"}, "damage": {"grdi": 1}})


def test_numbers_that_yaml_or_the_command_line_hand_over_as_text_are_numbers() -> None:
    settings = read_config(
        {
            "register": {"tolerance_px": "1e-4", "lags": ["1", "2"]},
            "decay": {"bandwidth_px": "3.5", "map_stride": 8.0},
            "align": None,
        }
    )
    assert settings.register.tolerance_px == 1e-4
    assert settings.register.lags == (1, 2)
    assert settings.decay.bandwidth_px == 3.5
    assert type(settings.decay.map_stride) is int
    assert settings.align == Settings().align
