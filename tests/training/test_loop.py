from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from atomdiffuser.errors import SettingsError, StoreError
from atomdiffuser.model import load_model
from atomdiffuser.training.batches import BatchSource
from atomdiffuser.training.loop import _optimizer, _Run, train
from atomdiffuser.training.objectives import build_network
from atomdiffuser.training.state import WeightAverage, existing_checkpoint
from atomdiffuser.training.stepping import clip_gradients, learning_rate

FILES = ("weights", "parameters", "first_moments", "second_moments")
quiet = lambda line: None


def tensors(folder):
    return {(f, k): v for f in FILES for k, v in load_file(folder / "checkpoint" / f"{f}.safetensors").items()}


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, settings):
    whole = train(settings, tmp_path / "whole", report=quiet)
    first = train(settings, tmp_path / "parts", max_steps=3, report=quiet)
    middle = tensors(tmp_path / "parts")
    second = train(settings, tmp_path / "parts", report=quiet)
    assert whole.finished and not first.finished and second.finished and first.step == 3
    a, b = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], middle[k]) for k in a)  # the second half did something
    assert load_file(whole.weights).keys() == load_file(second.weights).keys()
    assert all(torch.equal(v, load_file(second.weights)[k]) for k, v in load_file(whole.weights).items())
    rows = [(tmp_path / n / "validation.csv").read_text().splitlines() for n in ("whole", "parts")]
    without_time = [[",".join(r.split(",")[:1] + r.split(",")[2:]) for r in lines] for lines in rows]
    assert without_time[0] == without_time[1]
    model = load_model(whole.weights)
    assert model.config == settings.model


def test_another_seed_is_another_run(tmp_path, settings):
    short = replace(settings, steps=2)
    for seed in (1, 2):
        train(replace(short, seed=seed), tmp_path / str(seed), report=quiet)
    a, b = (tensors(tmp_path / str(s)) for s in (1, 2))
    assert not torch.equal(a["parameters", "decoder.leave.weight"], b["parameters", "decoder.leave.weight"])


def test_changed_settings_are_refused(tmp_path, settings):
    train(settings, tmp_path, max_steps=1, report=quiet)
    with pytest.raises(SettingsError, match="another seed; give another folder"):
        train(replace(settings, seed=9), tmp_path, report=quiet)


def test_damaged_checkpoint_is_named(tmp_path, settings):
    train(settings, tmp_path, max_steps=1, report=quiet)
    (tmp_path / "checkpoint" / "first_moments.safetensors").unlink()
    with pytest.raises(StoreError, match="delete it to start afresh"):
        train(settings, tmp_path, report=quiet)


def test_a_checkpoint_cut_short_falls_back_to_the_one_before(tmp_path, settings):
    train(settings, tmp_path, max_steps=1, report=quiet)
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    assert existing_checkpoint(tmp_path / "checkpoint") == tmp_path / "checkpoint.old"
    assert train(settings, tmp_path, max_steps=1, report=quiet).step == 2


def test_length_follows_from_the_speed(tmp_path, settings, monkeypatch):
    monkeypatch.setattr("atomdiffuser.training.loop.SPEED_FROM", 1)
    monkeypatch.setattr("atomdiffuser.training.loop.SPEED_UNTIL", 3)
    timed = replace(settings, steps=0, minutes=0.1)
    result = train(timed, tmp_path, max_steps=4, report=quiet)
    assert 4 <= result.total_steps < 10_000
    assert train(timed, tmp_path, max_steps=1, report=quiet).total_steps == result.total_steps


def test_one_batch_is_learned_quickly(settings):
    """Eighty steps on the same four pairs: the drift error falls to a third at least, the whole loss clearly.

    From step to step they go up and down by a factor of two: the mean of the last ten counts.
    """
    bright = replace(settings, batch=4, ranges=replace(settings.ranges, electrons=(100.0, 300.0)))
    model = build_network(bright)
    run = _Run(
        bright, model, _optimizer(model, bright, torch.device("cpu")), WeightAverage(model, 0.9), torch.device("cpu")
    )
    batch = run.source.at(0)
    run.source.at = lambda step: batch
    losses = [run.step(k, 3e-3 * min(1, (k + 1) / 10)) for k in range(81)]
    before = {name: float(value) for name, value in losses[0].items()}
    after = {name: sum(float(step[name]) for step in losses[-10:]) / 10 for name in before}
    assert after["drift_px"] < before["drift_px"] / 3
    assert after["search"] < 0.4 * before["search"]
    assert after["loss"] < 0.3 * before["loss"]


def test_the_parts_do_not_shorten_one_anothers_steps(settings):
    """Drift learns the same whether the maps are trained beside it or not, however large their loss."""
    found = []
    for parts, weight in ((("drift",), 1.0), (("drift", "maps"), 1e4)):
        chosen = replace(settings, parts=parts, map_weight=weight, aligned_within_px=0.0)
        model = build_network(chosen)
        average = WeightAverage(model, 0.9)
        run = _Run(chosen, model, _optimizer(model, chosen, torch.device("cpu")), average, torch.device("cpu"))
        for k in range(3):
            run.step(k, 3e-3)
        found.append({name: p for name, p in model.named_parameters() if not name.startswith("decoder.")})
    assert all(torch.allclose(p, found[1][name], atol=1e-6) for name, p in found[0].items())
    fresh = dict(build_network(settings).named_parameters())
    assert any((p - fresh[name]).abs().max() > 1e-3 for name, p in found[0].items())


def test_steps_do_not_depend_on_what_came_before(settings):
    a, b = BatchSource(settings, "cpu"), BatchSource(settings, "cpu")
    for k in range(5):
        last = a.at(k)
    alone = b.at(4)
    assert torch.equal(last.moving, alone.moving) and torch.equal(last.weight, alone.weight)
    repeated, original = b.at(6), b.at(4)  # the same signals, new noise
    assert torch.equal(repeated.maps, original.maps)
    assert not torch.equal(repeated.moving, original.moving)
    assert (repeated.moving.mean() / original.moving.mean() - 1).abs() < 0.05


def test_schedule_warms_up_and_falls(settings):
    s = replace(settings, warm_up=10, learning_rate=1.0, lowest_rate_share=0.1)
    rates = [learning_rate(k, 100, s) for k in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_gradients_are_clipped_and_broken_ones_dropped():
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 10.0)
    clip_gradients([parameter], 1.0)
    assert float(parameter.grad.norm()) == pytest.approx(1.0, abs=1e-4)
    parameter.grad = torch.tensor([1.0, torch.nan, 1.0, 1.0])
    clip_gradients([parameter], 1.0)
    assert torch.equal(parameter.grad, torch.zeros(4))


@pytest.mark.parametrize("network", ["published", "block"])
def test_baselines_train(tmp_path, settings, network):
    from atomdiffuser.evaluation.methods import load_baseline

    result = train(replace(settings, network=network, steps=2), tmp_path, report=quiet)
    assert result.finished
    assert type(load_baseline(result.weights)).__name__.lower().startswith(network)


def test_weights_to_start_from_are_taken_without_their_calibration(settings):
    shipped = load_model()
    model = build_network(replace(settings, model=shipped.config, start_from="default"))
    states = shipped.state_dict(), model.state_dict()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0] if k != "decoder.log_sigma_offset")
    assert states[0]["decoder.log_sigma_offset"].any() and not states[1]["decoder.log_sigma_offset"].any()
