"""The examples of CONTRIBUTING do what the text says."""

import re
from pathlib import Path

import numpy as np

TEXT = Path(__file__).parents[2].joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_defense_of_the_example_works(tmp_path, digits_tar, mlflow_store):
    from evasion.components.common.dataset import Dataset

    (source,) = re.findall(r"   ```python\n(   \"\"\"Fewer grey levels.*?)   ```", TEXT, re.DOTALL)
    module = {"__name__": "bit_depth"}
    exec(re.sub(r"(?m)^   ", "", source), module)
    module["bit_depth"](
        dataset=digits_tar, defended=tmp_path / "defended", bits=2, apply_fit=False, apply_predict=True, seed=1
    )
    with Dataset(tmp_path / "defended") as defended:
        levels = {int(level) for sample in defended.samples() for level in np.unique(sample.pixels)}
    assert levels <= {0, 85, 170, 255}
    assert len(levels) > 1
