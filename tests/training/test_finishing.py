"""What weights get after training: a second look that learns when to trust what, and σ that says the same whatever it
said before.
"""

from dataclasses import replace

import pytest
import torch

from atomdiffuser.model.checkpoint import load_model, model_card, save_model, weights_hash
from atomdiffuser.model.frames import pair_frames
from atomdiffuser.model.second_look import CHOICES, INPUTS
from atomdiffuser.training import finishing, second_look
from atomdiffuser.training.__main__ import main
from atomdiffuser.training.batches import BatchSource
from atomdiffuser.training.finishing import finish_file, finish_network
from atomdiffuser.training.objectives import atomdiffuser_loss, build_network
from atomdiffuser.training.second_look import CELLS, Cells, gather_cells, train_second_look

CPU = torch.device("cpu")


def quiet(line: str) -> None:
    """Report nothing."""


def card(settings, **more) -> dict:
    """What is written about a run."""
    return {"settings": settings.to_dict(), **more}


def test_a_network_too_sure_of_itself_is_put_right(tmp_path, settings):
    torch.manual_seed(3)
    settings = replace(settings, calibrate_pairs=3, look_pairs=0)
    model = build_network(settings)
    files, offsets = [tmp_path / name for name in ("plain", "sure")], []
    for file, shift in zip(files, (0.0, -0.5), strict=True):
        with torch.no_grad():
            for numbers in model.decoder._split(model.decoder.leave.bias[None]):
                numbers[:, -1] += shift
        save_model(model, file, training=card(settings, step=6))
        finish_file(file, file, {}, CPU, quiet)
        offsets.append(load_model(file).decoder.log_sigma_offset)
        assert model_card(file)["training"]["step"] == 6
    torch.testing.assert_close(offsets[1] - offsets[0], torch.full((2, 5), 0.5), atol=0.02, rtol=0)
    before = weights_hash(files[0])
    assert finish_file(files[0], files[0], {}, CPU, quiet) == before


def test_no_pairs_leave_sigma_as_the_network_says(tmp_path, settings):
    save_model(build_network(settings), tmp_path / "weights", training=card(settings))
    finish_file(tmp_path / "weights", tmp_path / "weights", {"calibrate_pairs": 0}, CPU, quiet)
    assert not load_model(tmp_path / "weights").decoder.log_sigma_offset.any()


def test_drift_alone_is_left_as_it_is(settings):
    model = build_network(settings)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    assert finish_network(model, replace(settings, parts=("drift",)), CPU, quiet) == {}
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_the_second_look_learns_when_to_trust_the_blend(monkeypatch, settings):
    """Where windows differ the blend is right, where they do not the widest is: the rest of the inputs is noise."""
    generator = torch.Generator().manual_seed(5)
    n = 400
    by = torch.randn(n, INPUTS, CELLS, 1, generator=generator)
    rough = by[:, :1] > 0
    between = 0.1 * torch.randn(n, CHOICES, CELLS, 1, generator=generator)
    truth = torch.where(rough, between[:, -1:], between[:, -2:-1]).exp()[:, 0]
    truth = truth + 0.003 * torch.randn(truth.shape, generator=generator)
    cells = Cells(by, between, torch.full_like(truth, -3.0), truth, torch.ones_like(truth), torch.ones(n, 1, 1))
    monkeypatch.setattr(second_look, "gather_cells", lambda *_: cells)
    model = build_network(settings)
    gain = train_second_look(model, replace(settings, look_steps=150), CPU)
    rate, change = model.decoder.second_look.choose(by, between)
    error = (rate.exp() - truth).abs()
    assert gain > 1.0 and error.median() < 0.02 < 0.05 < (between[:, -1].exp() - truth).abs()[~rough[:, 0]].median()
    assert change.mean() < -0.5  # σ comes down with the error


def test_a_second_look_that_gains_nothing_is_not_taken(monkeypatch, settings):
    """Between equals there is nothing to choose, and σ is right as it is."""
    generator = torch.Generator().manual_seed(6)
    by = torch.randn(64, INPUTS, CELLS, 1, generator=generator)
    between = torch.zeros(64, CHOICES, CELLS, 1)
    truth = 1 + 0.05 * torch.randn(64, CELLS, 1, generator=generator)
    log_sigma = torch.full_like(truth, 0.05).log()
    cells = Cells(by, between, log_sigma, truth, torch.ones_like(truth), torch.ones(64, 1, 1))
    monkeypatch.setattr(second_look, "gather_cells", lambda *_: cells)
    model = build_network(settings)
    assert train_second_look(model, replace(settings, look_steps=3), CPU) < 0
    rate, change = model.decoder.second_look.choose(by, between + torch.arange(CHOICES)[:, None, None])
    assert torch.equal(rate, torch.full_like(rate, CHOICES - 1)) and not change.any()


def test_cells_are_those_of_the_maps(settings):
    """Of each pair, at the same places: the net's blend, its log σ and the truth. The frames are not square."""
    settings = replace(settings, look_pairs=4, batch=2, intermediate=0.5, shape=(64, 96))
    model = build_network(settings)
    cells = gather_cells(model, settings, CPU)
    assert cells.by.shape == (4, INPUTS, CELLS, 1) and torch.isfinite(cells.by).all()
    source = BatchSource(replace(settings, seed=second_look.SEED + settings.seed, chunk=1, repeats=2), "cpu")
    for pair in range(4):
        batch = source.at(pair // 2)
        fields = model.estimate_decay(
            pair_frames(batch.reference, batch.moving), batch.moving_from_reference @ batch.small_motion, batch.tau,
            second_look=False,
        )[pair % 2]  # fmt: skip
        whole = torch.stack([fields[0], fields[2], batch.maps[pair % 2, 0], batch.weight[pair % 2, 0]]).flatten(1).mT
        mine = torch.stack([v[pair] for v in (cells.between[:, -1], cells.log_sigma, cells.truth, cells.weight)])
        apart = torch.cdist(mine[..., 0].mT.double(), whole.double())
        assert apart.min(1).values.max() < 1e-5
        assert cells.tau[pair] == batch.tau[pair % 2]


def test_nothing_of_the_second_look_is_trained_with_the_rest(settings):
    settings = replace(settings, parts=("maps",))
    model = build_network(settings)
    loss, _ = atomdiffuser_loss(model, BatchSource(settings, "cpu").at(0), settings)
    loss.backward()
    assert all(p.grad is None for p in model.decoder.second_look.parameters())
    assert model.decoder.leave.weight.grad.any()


def test_weights_are_finished_with_the_settings_that_they_were_trained_with(tmp_path, settings, monkeypatch):
    used = []
    monkeypatch.setattr(finishing, "finish_network", lambda _, s, *rest: used.append(s) or {"log_sigma_offset": [1]})
    settings = replace(settings, seed=8, ranges=replace(settings.ranges, electrons=(5.0, 50.0)))
    joined = {"maps": card(settings, log_sigma_offset=[0]), "drift": card(replace(settings, seed=9))}
    save_model(build_network(settings), tmp_path / "weights", training=joined)
    finish_file(tmp_path / "weights", tmp_path / "out", {"ranges.jitter": 0.1, "look_pairs": 7}, CPU, quiet)
    assert used == [replace(settings, look_pairs=7, ranges=replace(settings.ranges, jitter=0.1))]
    told = model_card(tmp_path / "out")["training"]
    assert told["log_sigma_offset"] == [1] and "log_sigma_offset" not in told["maps"] and told["drift"]["settings"]


@pytest.mark.parametrize(("given", "says"), [("nowhere", "no weights called"), ("text", "is no safetensors file")])
def test_what_is_not_weights_is_said(tmp_path, capsys, given, says):
    (tmp_path / "text").write_text("no weights")
    assert main(["finish", str(tmp_path / given), "--to", str(tmp_path / "out"), "--set", "look_pairs=0"]) == 1
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_setting_that_is_not_known_is_said(tmp_path, capsys):
    assert main(["finish", "default", "--to", str(tmp_path / "out"), "--set", "looks=3"]) == 1
    assert "looks" in capsys.readouterr().err
