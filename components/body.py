"""Calls a stage's `task.py` from the body of its step."""

import importlib
import inspect
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def call(stage: str, arguments: Mapping[str, Any]) -> Any:
    """Run a stage and return what its function returns.

    An artifact becomes a path, a missing one None, and a list of artifacts a list of paths. `pipelines/inputs.py` adds
    further datasets to a step; the function gets them as its parameter `others`.

    Args:
        stage: The name of the stage: its folder in `evasion.components` and its function in `task.py`.
        arguments: The step's parameters by name, as `locals()` returns them.
    """
    function = getattr(importlib.import_module(f"evasion.components.{stage}.task"), stage)
    parameters = inspect.signature(function).parameters
    values = {name: _plain(arguments[name]) for name in parameters if name in arguments}
    if "others" in parameters:
        values["others"] = [
            Path(value.path) for name, value in arguments.items() if name not in parameters and _is_dataset(value)
        ]
    for name, parameter in parameters.items():
        if values.get(name, parameter) is None and "list" in str(parameter.annotation):
            values[name] = []
    with _interrupted_by_termination():
        try:
            return function(**values)
        except (Exception, KeyboardInterrupt) as error:
            from evasion.components.common import tracking

            tracking.fail_pipeline_run("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise


@contextmanager
def _interrupted_by_termination() -> Iterator[None]:
    """Handle SIGTERM, which every pod gets at its end, like an interrupt: the stage removes its half and ends its run.

    Raises:
        SystemExit: After such a signal, with the status that the system would report. Clusters retry by it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    terminated = False

    def interrupt(*_: object) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if terminated:
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return Path(value.path) if hasattr(value, "path") else value


def _is_dataset(value: Any) -> bool:
    return getattr(value, "schema_title", "") == "system.Dataset"
