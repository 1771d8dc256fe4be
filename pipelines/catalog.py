"""All pipelines by name."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

# A kfp GraphComponent; kfp ships no type information.
Pipeline = Any

# The name of the evaluation in commands; its pipeline depends on its options.
EVALUATION = "evaluation"

# kfp takes most of a second to import, so the functions import it.


@functools.cache
def pipelines() -> Mapping[str, Pipeline]:
    """Return all pipelines by name: the entry points, and one evaluation per source of the model."""
    from evasion.pipelines import entry_points

    return {**entry_points.pipelines(), **evaluations()}


def evaluations(
    attacks: Sequence[str] | None = None, defenses: Sequence[str] | None = None, *, sharded: bool = False
) -> dict[str, Pipeline]:
    """Return the evaluations with these attacks and defenses by name, one per source of the model."""
    from evasion.pipelines.evaluation import SOURCES

    return {f"{EVALUATION}_{source}": evaluation(source, attacks, defenses, sharded=sharded) for source in SOURCES}


def evaluation(
    source: str, attacks: Sequence[str] | None = None, defenses: Sequence[str] | None = None, *, sharded: bool = False
) -> Pipeline:
    """Return the evaluation with these attacks and defenses; see `pipelines.evaluation.evaluation`."""
    from evasion.pipelines.evaluation import evaluation as build

    return build(source, attacks, defenses, sharded=sharded)
