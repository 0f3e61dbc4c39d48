import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).parents[1] / "estimation")
)  # measured_pairs, shared with the tests of the estimation
