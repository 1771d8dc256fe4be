"""The tests of hostile files use the lab of the unit tests, which writes evaluations, curves and reports."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "unit"))
