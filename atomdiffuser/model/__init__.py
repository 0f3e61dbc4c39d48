"""The time-aware degradation network: two frames in, drift and decay maps out, at any time between them."""

from atomdiffuser.model.checkpoint import load_model, save_model, weights_hash
from atomdiffuser.model.config import ModelConfig
from atomdiffuser.model.network import AtomDiffuser
from atomdiffuser.model.prediction import PairPrediction, PairStates

__all__ = ["AtomDiffuser", "ModelConfig", "PairPrediction", "PairStates", "load_model", "save_model", "weights_hash"]
