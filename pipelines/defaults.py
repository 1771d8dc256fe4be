"""Defaults of pipeline parameters: those of the steps, which declare them."""

from typing import Any


def default(step: Any, parameter: str) -> Any:
    """Return the default that a step declares for a parameter."""
    declared = step.component_spec.inputs[parameter]
    if not declared.optional:
        raise ValueError(f"{step.name} declares no default for {parameter}.")
    return declared.default
