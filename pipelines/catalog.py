"""Which pipelines there are: every one defined in the modules below, under its function's name; and which steps."""

import functools
import importlib
from pathlib import Path
from typing import Any

MODULES = ("evasion.pipelines.entry_points", "evasion.pipelines.fgm_evaluation")

# A kfp GraphComponent and a kfp PythonComponent; kfp ships no type information.
Pipeline = Any
Step = Any


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


@functools.cache
def steps() -> dict[str, Step]:
    """Return all steps by name: a folder of `evasion.components` each. Imports kfp, like `pipelines`."""
    folder = Path(importlib.import_module("evasion.components").__path__[0])
    names = sorted(file.parent.name for file in folder.glob("*/component.py"))
    return {name: getattr(importlib.import_module(f"evasion.components.{name}.component"), name) for name in names}
