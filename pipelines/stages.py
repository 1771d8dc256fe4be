"""Which steps there are, which of them attack and which defend, and what a pipeline calls their parameters.

A step is a folder of `evasion.components`. One with an output `adversarial` is an attack, one with an output `defended`
is a defense. Nothing else says so: a new one is found, has a pipeline, options and rows in the tests.
"""

import functools
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evasion.pipelines.derived import Parameter, of

StepComponent = Any  # a kfp PythonComponent; kfp ships no type information

# Parameters that mean the same in every step of an evaluation, and their text there; blank for that of the first step.
SHARED = {
    "batch_size": "Images at a time, in training, attack and inference.",
    "eps": "",
    "norm": "",
    "eps_values": "Points of the security curve, numbers separated by commas; blank for sixteen from 1/255 to 1 (norm "
    "inf), or as large a change of every pixel in the other norms.",
    "eot_samples": "For a defense that is random, the draws of it that a defense-aware attacker averages over.",
    "model_architecture": "What the model is: shallow_net, le_net, alex_net, resnet50 or vgg16.",
    "model_tag": "",
    "weights": "For resnet50 and vgg16: imagenet (downloaded by Keras), none (random, for trials), or a weights file, "
    "local or gs://: with its top for a pretrained model, without it to train.",
    "weights_sha256": "",
    "skip_unreadable": "",
    "seed": "From 0 to 4294967295; -1 draws one in each stage and records it.",
}
# Parameters that the evaluation sets itself.
WIRED = {"defenses"}
# Parameters that the evaluation leaves at their defaults: those of every defense, and those of one.
LEFT_ALONE = {
    ("", "apply_fit"),
    ("", "apply_predict"),
    ("jpeg_compression", "channels_first"),
    ("gaussian_augmentation", "perform_data_augmentation"),
    ("gaussian_augmentation", "ratio"),
}
# Names in the evaluation that are not <step>_<parameter>: those of the original's attack, and those that would be
# taken for the settings of adversarial training.
RENAMED = {
    ("fgm", "eps_step"): "eps_step",
    ("fgm", "minimal"): "minimal",
    ("pgd", "eps_step"): "pgd_attack_eps_step",
    ("pgd", "max_iter"): "pgd_attack_max_iter",
    ("pgd", "num_random_init"): "pgd_attack_num_random_init",
}


@functools.cache
def steps() -> Mapping[str, StepComponent]:
    """Return all steps by name. Imports kfp, which takes most of a second, so call it late."""
    folder = Path(importlib.import_module("evasion.components").__path__[0])
    names = sorted(file.parent.name for file in folder.glob("*/component.py"))
    return {name: getattr(importlib.import_module(f"evasion.components.{name}.component"), name) for name in names}


def attacks() -> dict[str, StepComponent]:
    """Return the attacks by name."""
    return _with_output("adversarial")


def defenses() -> dict[str, StepComponent]:
    """Return the defenses by name."""
    return _with_output("defended")


def usual(known: Iterable[str]) -> list[str]:
    """Return which of these steps an evaluation has that names none, in their order."""
    places = {
        name: getattr(importlib.import_module(f"evasion.components.{name}.component"), "PLACE_IN_DEFAULT_EVALUATION", 0)
        for name in known
    }
    return sorted((name for name, place in places.items() if place), key=lambda name: (places[name], name))


def parameters_of(step: StepComponent) -> list[str]:
    """Return the names of a step's parameters, artifacts left out."""
    return [name for name, declared in (step.component_spec.inputs or {}).items() if "." not in declared.type]


def in_evaluation(name: str, step: StepComponent) -> dict[str, Parameter]:
    """Return the evaluation's parameters for an attack or a defense, by the step's own names."""
    found = {}
    for parameter in parameters_of(step):
        if parameter in WIRED or LEFT_ALONE & {("", parameter), (name, parameter)}:
            continue
        if parameter in SHARED:
            found[parameter] = of(step, parameter, text=SHARED[parameter])
        else:
            declared = of(step, parameter, RENAMED.get((name, parameter), f"{name}_{parameter}"))
            text = f"Of {name}: {declared.text[:1].lower()}{declared.text[1:]}"
            found[parameter] = Parameter(declared.name, declared.type, declared.default, text)
    return found


def _with_output(output: str) -> dict[str, StepComponent]:
    return {name: step for name, step in steps().items() if output in (step.component_spec.outputs or {})}
