"""After calibration σ says the same whatever it said before, and calibrating again changes nothing."""

from dataclasses import replace

import pytest
import torch

from atomdiffuser.model.checkpoint import load_model, model_card, save_model, weights_hash
from atomdiffuser.training.__main__ import main
from atomdiffuser.training.calibration import calibrate
from atomdiffuser.training.objectives import build_network

CPU = torch.device("cpu")


def test_a_network_too_sure_of_itself_is_put_right(tmp_path, settings):
    torch.manual_seed(3)
    settings = replace(settings, calibrate_pairs=3)
    model = build_network(settings)
    files, offsets = [tmp_path / name for name in ("plain", "sure")], []
    for file, shift in zip(files, (0.0, -0.5), strict=True):
        with torch.no_grad():
            for numbers in model.decoder._split(model.decoder.leave.bias[None]):
                numbers[:, -1] += shift
        save_model(model, file, training={"steps": 6})
        calibrate(file, file, settings, CPU)
        offsets.append(load_model(file).decoder.log_sigma_offset)
        assert model_card(file)["training"]["steps"] == 6
    torch.testing.assert_close(offsets[1] - offsets[0], torch.full((2, 5), 0.5), atol=0.02, rtol=0)
    before = weights_hash(files[0])
    assert calibrate(files[0], files[0], settings, CPU) == before


def test_no_pairs_leave_sigma_as_the_network_says(tmp_path, settings):
    save_model(build_network(settings), tmp_path / "weights")
    calibrate(tmp_path / "weights", tmp_path / "weights", replace(settings, calibrate_pairs=0), CPU)
    assert not load_model(tmp_path / "weights").decoder.log_sigma_offset.any()


@pytest.mark.parametrize(("given", "says"), [("nowhere", "no weights called"), ("text", "is no safetensors file")])
def test_what_is_not_weights_is_said(tmp_path, capsys, given, says):
    (tmp_path / "text").write_text("no weights")
    assert main(["calibrate", str(tmp_path / given), "--to", str(tmp_path / "out"), "--pairs", "1"]) == 1
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()
