"""Which pipelines there are: every one defined in the modules below, under its function's name; and which steps."""

import functools
import importlib
from collections.abc import Sequence
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


# The pipeline whose attacks and defenses are chosen when it is made; the one of this name has the usual ones.
EVALUATION = "fgm_evaluation"


def evaluation(attacks: Sequence[str] | None, defenses: Sequence[str] | None) -> Pipeline:
    """Return the evaluation of these attacks and defenses, by name; None for the usual ones.

    Raises:
        ValueError: A name is unknown or given twice, or there is no attack.
    """
    from evasion.pipelines import fgm_evaluation

    chosen = {"attacks": attacks, "defenses": defenses}
    return fgm_evaluation.evaluation(**{what: names for what, names in chosen.items() if names is not None})


@functools.cache
def steps() -> dict[str, Step]:
    """Return all steps by name: a folder of `evasion.components` each. Imports kfp, like `pipelines`."""
    folder = Path(importlib.import_module("evasion.components").__path__[0])
    names = sorted(file.parent.name for file in folder.glob("*/component.py"))
    return {name: getattr(importlib.import_module(f"evasion.components.{name}.component"), name) for name in names}
