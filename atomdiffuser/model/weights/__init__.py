"""Shipped weights: `<name>.safetensors`, found by `load_model`; a package so that installation carries them."""
