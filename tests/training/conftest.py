from pathlib import Path

import pytest
import torch

from atomdiffuser.training.settings import read_settings

CONFIG = Path(__file__).parents[2] / "config" / "train.yaml"


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Small networks: threads that wait for each other on a busy machine cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """Drawing takes longer than training here; the log's own test draws."""
    monkeypatch.setattr("atomdiffuser.training.loop.TrainingLog.plot", lambda self: None)


@pytest.fixture
def config():
    """The shipped presets."""
    return CONFIG


@pytest.fixture
def settings():
    """Six steps of the smallest network, with every kind of step in them."""
    changes = {
        "steps": 6,
        "chunk": 2,
        "repeats": 2,
        "warm_up": 2,
        "validate_every": 4,
        "learning_rate": 3e-3,
        "validate_pairs": 2,
    }
    return read_settings(CONFIG, "tiny", changes)
