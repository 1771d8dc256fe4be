"""Fixtures that the tests of this folder share."""

import pytest
from defending import DEFENSES


@pytest.fixture
def defend(tmp_path, mlflow_store):
    """Run a defense by its name and return the defended datasets' path and the numbers that the task returned."""

    def run(stage, source, output="defended.tar", others=(), **parameters):
        task, defaults = DEFENSES[stage]
        common = {"apply_fit": False, "apply_predict": True, "seed": 1}
        path = tmp_path / output
        arguments = {**defaults, **common, **parameters}
        return path, task(dataset=source, others=list(others), defended=path, **arguments)

    return run
