import pytest
import yaml

from atomdiffuser.errors import SettingsError
from atomdiffuser.model import AtomDiffuser
from atomdiffuser.training.__main__ import main
from atomdiffuser.training.settings import TrainSettings, parse_yaml, read_settings, settings_from


def test_shipped_file_reads_as_real_yaml(config):
    text = config.read_text()
    assert parse_yaml(text) == yaml.safe_load(text)


def test_every_preset_is_valid(config):
    for preset in parse_yaml(config.read_text()):
        settings = read_settings(config, preset)
        assert AtomDiffuser(settings.model).count_parameters() * 4 <= 16e6
        assert settings_from(settings.to_dict()) == settings


def test_evaluation_crystals_are_not_trained_on():
    assert TrainSettings().validate_crystals  # training itself draws random lattices only, see BatchSource


def test_changes_reach_inside(config):
    settings = read_settings(config, "small", {"batch": 3, "model.step_width": 20, "ranges.electrons": [5.0, 6.0]})
    assert (settings.batch, settings.model.step_width, settings.ranges.electrons) == (3, 20, (5.0, 6.0))
    assert settings.model.condition == read_settings(config, "small").model.condition


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bach": 3}, "bach: unknown key"),
        ({"model.width": 3}, "model setting 'width' is not known"),
        ({"ranges.electron": 3}, "ranges.electron: unknown key"),
        ({"network": "other"}, "network 'other' is not known"),
        ({"batch": 0}, "batch is 0, expected at least 1"),
        ({"shape": [16, 64]}, "expected at least 32"),
    ],
)
def test_wrong_settings_are_named(config, changes, message):
    with pytest.raises(SettingsError, match=message):
        read_settings(config, "small", changes)


def test_unknown_preset_and_unreadable_line(config):
    with pytest.raises(SettingsError, match="preset 'huge' is not in"):
        read_settings(config, "huge")
    with pytest.raises(SettingsError, match="line 2: '- a' is not understood"):
        parse_yaml("x:\n  - a\n")


def test_command_of_the_bare_machine(tmp_path, config, capsys):
    run = lambda *more: main(["tiny", "--config", str(config), "--folder", str(tmp_path), "--device", "cpu", *more])
    fast = ("--set", "validate_every=50", "--set", "batch=1", "--set", "steps=2", "--set", "validate_pairs=1")
    assert run("--max-steps", "1", *fast) == 3
    assert run(*fast) == 0
    assert (tmp_path / "weights.safetensors").is_file()
    assert run("--set", "bach=1") == 1
    assert run("--set", "batch") == 1
    assert "bach: unknown key" in capsys.readouterr().err
