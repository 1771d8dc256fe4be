"""The steps, which of them are attacks or defenses, and the names of their parameters in the evaluation.

A step is a folder of `evasion.components`. A step with an output `adversarial` is an attack, a step with an output
`defended` is a defense. There is no other registration: a new step gets a pipeline, options and rows in the tests.
"""

import functools
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evasion.pipelines.derived import Parameter, parameter_of

StepComponent = Any  # a kfp PythonComponent; kfp ships no type information

# Parameters shared by all steps of an evaluation, and their description there; blank for that of the first step.
SHARED = {
    "batch_size": "Images per batch in training, attack and inference.",
    "eps": "Size of the attack in its norm, for pixels in [0, 1]: in (0, 1] for inf, positive for 1 and 2.",
    "norm": "inf, 1 or 2, as far as all attacks have it: auto_attack has no norm 1.",
    "eps_values": "Points of the security curve, numbers separated by commas; blank for sixteen from 1/255 to 1 (norm "
    "inf), or an equally large change of every pixel in the other norms.",
    "eot_samples": "Number of draws of a random defense that a defense-aware attacker averages over.",
    "model_architecture": "The model's architecture: shallow_net, le_net, alex_net, or a classifier of "
    "keras.applications in lowercase letters, such as resnet50; with model it may be blank.",
    "model_tag": "",
    "weights": "For classifiers of keras.applications: imagenet (downloaded by Keras), none (random, for tests), or a "
    "weights file, local or gs://: with its top for a pretrained model, without its top for training.",
    "weights_sha256": "",
    "skip_unreadable": "",
    "interpolation": "How images of another size are resized: nearest, bilinear, bicubic, area or lanczos3.",
    "crop_to_aspect_ratio": "Whether to cut images to the model's aspect ratio instead of distorting them.",
    "pad_to_aspect_ratio": "Whether to pad images with black instead.",
    "seed": "Random seed from 0 to 4294967295; -1 draws one in each stage and records it.",
}
# Parameters that the evaluation sets itself.
WIRED = {"defenses"}
# (step, parameter) pairs that the evaluation leaves at their defaults; a blank step means every defense.
LEFT_AT_DEFAULT = {
    ("", "apply_fit"),
    ("", "apply_predict"),
    ("jpeg_compression", "channels_first"),
    ("gaussian_augmentation", "perform_data_augmentation"),
    ("gaussian_augmentation", "ratio"),
}
# Names in the evaluation that differ from <step>_<parameter>: those of the original's attack, and those that would
# collide with the settings of adversarial training.
RENAMED = {
    ("fgm", "eps_step"): "eps_step",
    ("fgm", "minimal"): "minimal",
    ("pgd", "eps_step"): "pgd_attack_eps_step",
    ("pgd", "max_iter"): "pgd_attack_max_iter",
    ("pgd", "num_random_init"): "pgd_attack_num_random_init",
}


# Names of the parameters of load_model in pipelines, where they stand beside those of other steps.
OF_MODEL = {"name": "model", "sha256": "model_sha256", "package": "model_package"}
RESIZING = ("interpolation", "crop_to_aspect_ratio", "pad_to_aspect_ratio")


@functools.cache
def steps() -> Mapping[str, StepComponent]:
    """Return all steps by name. This imports kfp, which takes most of a second, so call it late."""
    folder = Path(importlib.import_module("evasion.components").__path__[0])
    names = sorted(file.parent.name for file in folder.glob("*/component.py"))
    return {name: getattr(importlib.import_module(f"evasion.components.{name}.component"), name) for name in names}


def attacks() -> dict[str, StepComponent]:
    """Return the attacks by name."""
    return _with_output("adversarial")


def defenses() -> dict[str, StepComponent]:
    """Return the defenses by name."""
    return _with_output("defended")


def default_steps(names: Iterable[str]) -> list[str]:
    """Return those of these steps that an evaluation runs by default, in order."""
    places = {name: _constant(steps()[name], "PLACE_IN_DEFAULT_EVALUATION", 0) for name in names}
    return sorted((name for name, place in places.items() if place), key=lambda name: (places[name], name))


def parameter_names(step: StepComponent) -> list[str]:
    """Return the names of a step's parameters, without its artifacts."""
    return [name for name, declared in (step.component_spec.inputs or {}).items() if "." not in declared.type]


def evaluation_parameters(name: str, step: StepComponent) -> dict[str, Parameter]:
    """Return the evaluation's parameters for an attack or a defense, by the step's own names.

    Their defaults are those of the step, unless `DEFAULTS_IN_EVALUATION` in its module has others.
    """
    parameters = {}
    defaults = _constant(step, "DEFAULTS_IN_EVALUATION", {})
    for parameter in parameter_names(step):
        if parameter in WIRED or LEFT_AT_DEFAULT & {("", parameter), (name, parameter)}:
            continue
        if parameter in SHARED:
            parameters[parameter] = parameter_of(step, parameter, text=SHARED[parameter])
        else:
            own_name = RENAMED.get((name, parameter), f"{name}_{parameter}")
            declared = parameter_of(step, parameter, own_name, default=defaults.get(parameter))
            text = f"For {name}: {declared.text[:1].lower()}{declared.text[1:]}"
            parameters[parameter] = replace(declared, text=text)
    return parameters


def _constant(step: StepComponent, name: str, default: Any) -> Any:
    """Return a constant of the module that declares a step."""
    return getattr(importlib.import_module(step.python_func.__module__), name, default)


def _with_output(output: str) -> dict[str, StepComponent]:
    return {name: step for name, step in steps().items() if output in (step.component_spec.outputs or {})}
