"""Accuracy and speed, measured: `make benchmark` runs every module here and prints its table."""
