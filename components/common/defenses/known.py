"""The defenses that an attacker knows, as the parameter `defenses` of an attack names them."""

import importlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from evasion.components.common.defenses.transformations import Transformation
from evasion.components.common.validate import ParameterError

SETTING_TYPES = (bool, int, float, str)  # of a stage's parameters that are no artifacts

OF_THE_STAGE = ("apply_fit", "apply_predict", "seed")  # and no settings of its transformation


@dataclass(frozen=True)
class Defense:
    """A defense that an attacker knows.

    Attributes:
        stage: Its name, that of its folder in `evasion.components`.
        parameters: Its settings.
        transformation: What it does to one image.
    """

    stage: str
    parameters: Mapping[str, Any]
    transformation: Transformation

    def describe(self) -> dict[str, Any]:
        """Return the defense as provenance names it."""
        return {"stage": self.stage, "parameters": dict(self.parameters)}


def defenses_of(text: str) -> list[Defense]:
    """Return the defenses that a parameter `defenses` names.

    Args:
        text: A JSON object: by the name of each defense an object of all settings that make its transformation, such
            as `{"spatial_smoothing": {"window_size": 3}}`. Blank for none.

    Raises:
        ValueError: If it is not of this form, or a setting breaks its rule.
    """
    return [
        Defense(stage, settings, _module(stage).transformation(**settings))
        for stage, settings in _settings(text).items()
    ]


def _settings(text: str) -> dict[str, dict[str, Any]]:
    """Return the settings of each defense, of the types that its stage declares."""
    if not text.strip():
        return {}
    rule = 'defenses must be a JSON object of settings by defense, such as {"spatial_smoothing": {"window_size": 3}}'
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ParameterError(f"{rule}: {error}. Received: defenses={text!r}", "defenses") from None
    if not isinstance(given, dict) or not all(isinstance(settings, dict) for settings in given.values()):
        raise ParameterError(f"{rule}. Received: defenses={text!r}", "defenses")
    return {stage: _typed(stage, settings) for stage, settings in given.items()}


def _module(stage: str) -> Any:
    """Return the module of a defense's stage; a stage is a defense if it has a `transformation`."""
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
    """Return the settings of a defense as its stage declares them, or refuse them."""
    module = _module(stage)
    hints = get_type_hints(getattr(module, stage))
    types = {name: kind for name, kind in hints.items() if kind in SETTING_TYPES and name not in OF_THE_STAGE}
    if unknown := [name for name in settings if name not in types]:
        raise ValueError(f"defenses: {stage} has no {', '.join(unknown)}. Its parameters: {', '.join(types)}")
    typed = {name: _of_type(types[name], value) for name, value in settings.items()}
    for name, value in typed.items():
        if types[name] is bool and not isinstance(value, bool):
            raise ParameterError(f"defenses: {name} of {stage} must be true or false. Received: {name}={value!r}", name)
    if typed.get("perform_data_augmentation"):
        raise ParameterError(
            "A defense-aware attack needs a defense that turns each image into one. "
            "Received: perform_data_augmentation=True",
            "perform_data_augmentation",
        )
    needed = {
        name
        for name, parameter in inspect.signature(module.transformation).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    }
    if missing := sorted(needed - typed.keys()):
        raise ValueError(f"defenses: {stage} needs {', '.join(missing)}. Received: {', '.join(typed) or 'nothing'}")
    checked = {**typed, "seed": 0}  # draws are the attacker's
    names = inspect.signature(module.check).parameters
    if all(name in checked for name, one in names.items() if one.kind is one.KEYWORD_ONLY and one.default is one.empty):
        module.check(**checked)
    return typed


def _of_type(kind: Any, value: Any) -> Any:
    """Return a value that JSON, or a pipeline that filled it in, has as a text or as a float of a whole number."""
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if kind is int and number.is_integer() else number
    return value
