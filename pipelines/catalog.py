"""Which pipelines there are: every one defined in the modules below, under its function's name."""

import functools
import importlib
from typing import Any

MODULES = ("evasion.pipelines.entry_points", "evasion.pipelines.fgm_evaluation")

# A kfp GraphComponent; kfp ships no type information.
Pipeline = Any


@functools.cache
def pipelines() -> dict[str, Pipeline]:
    """Return all pipelines by name. Imports kfp, which takes most of a second, so call it late."""
    from kfp.dsl.graph_component import GraphComponent

    return {
        name: value
        for module in MODULES
        for name, value in vars(importlib.import_module(module)).items()
        if isinstance(value, GraphComponent)
    }
