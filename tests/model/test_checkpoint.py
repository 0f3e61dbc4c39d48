import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from atomdiffuser.errors import StoreError
from atomdiffuser.model import AtomDiffuser, load_model, save_model, weights_hash
from atomdiffuser.model import checkpoint as module
from atomdiffuser.training.__main__ import main


def test_round_trip(tmp_path, network, pairs):
    path = tmp_path / "weights.safetensors"
    digest = save_model(network, path, training={"seed": 5})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == weights_hash(path)
    again = load_model(path)
    assert again.config == network.config and not again.training
    torch.testing.assert_close(
        again.predict(pairs.reference, pairs.moving).rates, network.predict(pairs.reference, pairs.moving).rates
    )
    assert module.model_card(path)["training"] == {"seed": 5}
    assert save_model(network, tmp_path / "again.safetensors", training={"seed": 5}) == digest


def test_hash_follows_the_weights(tmp_path, network):
    first = save_model(network, tmp_path / "a.safetensors")
    with torch.no_grad():
        network.decoder.leave.bias += 1e-3
    assert save_model(network, tmp_path / "b.safetensors") != first


def test_parts_trained_apart_are_joined(tmp_path, network, tiny):
    torch.manual_seed(8)
    other = AtomDiffuser(tiny)
    for name, model in (("maps", network), ("drift", other)):
        save_model(model, tmp_path / f"{name}.safetensors", training={"seed": name})
    command = ["join", *(str(tmp_path / f"{n}.safetensors") for n in ("maps", "drift")), "--to"]
    assert main([*command, str(tmp_path / "both.safetensors")]) == 0
    joined = load_model(tmp_path / "both.safetensors").state_dict()
    for key, value in joined.items():
        source = network if key.startswith("decoder") else other
        assert torch.equal(value, source.state_dict()[key])
    assert module.model_card(tmp_path / "both.safetensors")["training"] == {
        "maps": {"seed": "maps"}, "drift": {"seed": "drift"},
    }  # fmt: skip
    save_model(AtomDiffuser(replace(tiny, step_width=16)), tmp_path / "drift.safetensors")
    assert main([*command, str(tmp_path / "not.safetensors")]) == 1
    assert not (tmp_path / "not.safetensors").exists()


def test_half_the_size_in_bfloat16(tmp_path, network):
    save_model(network, tmp_path / "full.safetensors")
    save_model(network, tmp_path / "half.safetensors", dtype=torch.bfloat16)
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.7 * sizes[0]
    assert load_model(tmp_path / "half.safetensors").decoder.leave.weight.dtype == torch.float32


def test_errors_say_what_to_do(tmp_path, monkeypatch, network):
    monkeypatch.setattr(module, "WEIGHTS_FOLDER", tmp_path / "none")
    with pytest.raises(StoreError, match="this version ships none; train them with atomdiffuser train"):
        load_model()
    with pytest.raises(StoreError, match="no weights called 'other'"):
        load_model("other")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(StoreError, match="is no safetensors file"):
        load_model(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(StoreError, match="holds no AtomDiffuser weights"):
        load_model(tmp_path / "foreign.safetensors")
    state = network.state_dict()
    state.pop("decoder.leave.bias")
    save_model(network, tmp_path / "partial.safetensors", state=state)
    with pytest.raises(StoreError, match="does not fit its own settings"):
        load_model(tmp_path / "partial.safetensors")


def test_names_find_shipped_weights(tmp_path, monkeypatch, network):
    monkeypatch.setattr(module, "WEIGHTS_FOLDER", tmp_path)
    save_model(network, tmp_path / "default.safetensors")
    assert load_model().config == network.config
    with pytest.raises(StoreError, match="shipped are default"):
        load_model("other")
