"""Reads the parameter `defenses` of an attack: the defenses that attackers know."""

import importlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from evasion.components.common.defenses.transformations import Transformation
from evasion.components.common.validate import ParameterError

SETTING_TYPES = (bool, int, float, str)  # the types of parameters that are not artifacts

OF_THE_STAGE = ("apply_fit", "apply_predict", "seed")  # parameters that are not settings of the transformation


@dataclass(frozen=True)
class Defense:
    """A defense that an attacker knows.

    Attributes:
        stage: Its name, which is also that of its folder in `evasion.components`.
        parameters: Its settings.
        transformation: The function that it applies to one image.
    """

    stage: str
    parameters: Mapping[str, Any]
    transformation: Transformation

    def describe(self) -> dict[str, Any]:
        """Return the defense in the form of the provenance."""
        return {"stage": self.stage, "parameters": dict(self.parameters)}


def defenses_of(text: str) -> list[Defense]:
    """Return the defenses that a parameter `defenses` names.

    Args:
        text: A JSON object that maps the name of each defense to an object with all settings of its transformation,
            such as `{"spatial_smoothing": {"window_size": 3}}`. Blank for none.

    Raises:
        ValueError: If the text does not have this form, or a setting violates its rule.
    """
    return [
        Defense(stage, settings, _module(stage).transformation(**settings))
        for stage, settings in _settings(text).items()
    ]


def _settings(text: str) -> dict[str, dict[str, Any]]:
    """Return the settings of each defense, converted to the types that its stage declares."""
    if not text.strip():
        return {}
    rule = 'defenses must be a JSON object of settings by defense, such as {"spatial_smoothing": {"window_size": 3}}'
    try:
        settings_by_stage = json.loads(text)
    except ValueError as error:
        raise ParameterError(f"{rule}: {error}. Received: defenses={text!r}", "defenses") from None
    if not isinstance(settings_by_stage, dict) or not all(
        isinstance(settings, dict) for settings in settings_by_stage.values()
    ):
        raise ParameterError(f"{rule}. Received: defenses={text!r}", "defenses")
    return {stage: _typed(stage, settings) for stage, settings in settings_by_stage.items()}


def _module(stage: str) -> Any:
    """Return the `task` module of a defense. A stage is a defense if this module has a `transformation`."""
    module = None
    if re.fullmatch(r"[a-z][a-z0-9_]*", stage):
        try:
            module = importlib.import_module(f"evasion.components.{stage}.task")
        except ModuleNotFoundError:
            module = None
    if not hasattr(module, "transformation"):
        raise ParameterError(
            f"defenses must name steps that have a `transformation`. Received: defenses={stage!r}", "defenses"
        )
    return module


def _typed(stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a defense, converted to the types that its stage declares, after validating them."""
    module = _module(stage)
    hints = get_type_hints(getattr(module, stage))
    types = {name: hint for name, hint in hints.items() if hint in SETTING_TYPES and name not in OF_THE_STAGE}
    if unknown := [name for name in settings if name not in types]:
        raise ValueError(f"defenses: {stage} has no {', '.join(unknown)}. Its parameters: {', '.join(types)}")
    typed = {name: _of_type(types[name], value) for name, value in settings.items()}
    for name, value in typed.items():
        if types[name] is bool and not isinstance(value, bool):
            raise ParameterError(f"defenses: {name} of {stage} must be true or false. Received: {name}={value!r}", name)
    if typed.get("perform_data_augmentation"):
        raise ParameterError(
            "A defense-aware attack needs a defense that turns each image into exactly one. "
            "Received: perform_data_augmentation=True",
            "perform_data_augmentation",
        )
    if missing := sorted(_required_parameters(module.transformation) - typed.keys()):
        raise ValueError(f"defenses: {stage} needs {', '.join(missing)}. Received: {', '.join(typed) or 'nothing'}")
    arguments = {**typed, "seed": 0}  # the attacker draws with its own seed
    if _required_parameters(module.check) <= arguments.keys():
        module.check(**arguments)
    return typed


def _required_parameters(function: Any) -> set[str]:
    """Return the names of the keyword-only parameters without a default."""
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    }


def _of_type(kind: Any, value: Any) -> Any:
    """Convert a value to its declared type: JSON or a pipeline may have turned it into a text or a whole float."""
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return value
        return int(number) if kind is int and number.is_integer() else number
    return value
