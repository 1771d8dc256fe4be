"""What a step's body calls: the stage's `task.py`, with the step's own parameters."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def call(stage: str, arguments: Mapping[str, Any]) -> Any:
    """Run a stage and return what its function returns.

    Artifacts become paths: one that is missing None, a list of them a list. Datasets that the function has no parameter
    for, which `pipelines/inputs.py` adds to a step, go together into its parameter `others`.

    Args:
        stage: The name of the stage: its folder in `evasion.components` and its function in `task.py`.
        arguments: The step's parameters by name, as `locals()` returns them.
    """
    function = getattr(importlib.import_module(f"evasion.components.{stage}.task"), stage)
    parameters = inspect.signature(function).parameters
    given = {name: _plain(arguments[name]) for name in parameters if name in arguments}
    if "others" in parameters:
        given["others"] = [
            Path(value.path) for name, value in arguments.items() if name not in parameters and _is_dataset(value)
        ]
    for name, parameter in parameters.items():
        if given.get(name, parameter) is None and "list" in str(parameter.annotation):
            given[name] = []
    try:
        return function(**given)
    except Exception:
        from evasion.components.common import tracking

        tracking.fail_pipeline_run()
        raise


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return Path(value.path) if hasattr(value, "path") else value


def _is_dataset(value: Any) -> bool:
    return getattr(value, "schema_title", "") == "system.Dataset"
