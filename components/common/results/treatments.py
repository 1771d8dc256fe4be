"""What was done to a dataset: the entries of its provenance, and all attacks or defenses as one treatment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from evasion.components.common.data.provenance import OBLIVIOUS
from evasion.components.common.results.json_file import strict

# Where data and models come from and how they are fed, not what an attack or a defense does with them.
_PLUMBING = {
    "apply_fit",
    "apply_predict",
    "batch_size",
    "data_dir",
    "dataset_name",
    "dataset_run_id",
    "dataset_tar_name",
    "load_dataset_from_mlruns",
    "model",
    "model_architecture",
    "model_tag",
    "run_id",
    "seed",
}
# A setting that a switch makes effective is not shown while the switch is off.
_SWITCHES = {"eps_step": "minimal", "ratio": "perform_data_augmentation"}
# How an attacker goes about a defense is no setting of the attack: it is the same attack by another attacker.
_ATTACKER = {"eot_samples"}


WORST_CASE = "worst case"


def effective(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return those parameters of an attack or a defense that decide what it does to an image."""

    def counts(name: str, value: object) -> bool:
        switch = _SWITCHES.get(name)
        switched_off = switch is not None and parameters.get(switch) is False
        return name not in _PLUMBING | _ATTACKER and value not in (None, "", False) and not switched_off

    return {name: value for name, value in parameters.items() if counts(name, value)}


def setting_text(name: str, value: object) -> str:
    """Return a setting as people read it: `eps=8/255`, `norm=inf`; of a switch its name alone."""
    return name if value is True else f"{name}={_short(value)}"


def _short(value: object) -> str:
    if isinstance(value, float):
        levels = value * 255
        # 0.03137254901960784 says less than 8/255, which is how people give an eps.
        if 0 < value < 1 and len(repr(value)) > 8 and abs(levels - round(levels)) < 1e-4:
            return f"{round(levels)}/255"
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


@strict
@dataclass(frozen=True)
class TreatmentStep:
    """One attack or one defense.

    Attributes:
        name: The name of its stage.
        settings: The parameters that decide what it does to an image, by name.
    """

    name: str
    settings: dict[str, Any]

    @property
    def text(self) -> str:
        """The settings as people read them: `eps=0.3 norm=inf`."""
        return " ".join(setting_text(name, value) for name, value in self.settings.items())

    @property
    def label(self) -> str:
        """Name and settings in one text."""
        return f"{self.name} {self.text}".strip()


@strict
@dataclass(frozen=True)
class Aim:
    """The defense that a defense-aware attack was aimed at.

    Attributes:
        stage: The name of its stage.
        parameters: Its parameters.
    """

    stage: str
    parameters: dict[str, Any]

    @property
    def step(self) -> TreatmentStep:
        """The defense as a step of a treatment."""
        return TreatmentStep(self.stage, effective(self.parameters))

    @property
    def label(self) -> str:
        """Name and settings in one text."""
        return self.step.label

    def is_of(self, entry: ProvenanceEntry) -> bool:
        """Return whether it is this defense: all settings that both name are the same."""
        common = (self.parameters.keys() & entry.parameters.keys()) - _PLUMBING
        return self.stage == entry.stage and all(self.parameters[name] == entry.parameters[name] for name in common)


@strict
@dataclass(frozen=True, kw_only=True)
class ProvenanceEntry:
    """One stage that a dataset went through: what was done, how, and by which versions.

    Attributes:
        stage: The stage's name.
        kind: load, attack or defense.
        parameters: Its parameters.
        seed: Its seed; of a sharded dataset, a list where each shard drew its own.
        versions: Of packages, by name.
        parent_sha256: Hash of the dataset that it worked on, or None.
        model_sha256: Of an attack, the hash of the model attacked.
        gradient_from_logits: Of an attack, whether the loss was taken from logits.
        iterates: Of an attack, whether it takes more than one step.
        effort: Of an attack, how much it does, in words; blank if its name says it.
        stronger: Of an attack, the options that give it the budget of its paper; blank if it has it.
        knowledge: Of an attack, what the attacker knew of a defense.
        defense: Of a defense-aware attack, the defense.
        draws: Of a defense-aware attack on a random defense, over how many draws it averaged.
        applied: Of a defense, whether it ran over the images.
        skipped: Of loading, the files that were left out as unreadable, with the reason.
        shard: Of loading, the number of the shard and of how many, from 0.
    """

    stage: str
    kind: str
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int | list[int | None] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    parent_sha256: str | None = None
    model_sha256: str | None = None
    gradient_from_logits: bool | None = None
    iterates: bool = False
    effort: str = ""
    stronger: str = ""
    knowledge: str = OBLIVIOUS
    defense: Aim | None = None
    draws: int | None = None
    applied: bool = True
    skipped: dict[str, str] | None = None
    shard: tuple[int, int] | None = None

    @property
    def step(self) -> TreatmentStep:
        """The attack or defense as a step of a treatment."""
        return TreatmentStep(self.stage, effective(self.parameters))

    @cached_property
    def identity(self) -> str:
        """Text that is the same for the same work, whatever data it was done on."""
        own = {name: value for name, value in self.parameters.items() if name not in _PLUMBING | _ATTACKER}
        return json.dumps([self.stage, own, self.applied], sort_keys=True)


@strict
@dataclass(frozen=True)
class Treatment:
    """All attacks, or all defenses, that a dataset went through, as one thing with one name.

    Attributes:
        name: The names of the steps, and what else distinguishes treatments: `jpeg_compression (run 2)`.
        settings: The settings of the steps as people read them.
        steps: The attacks or defenses, in their order.
        applied: Whether all steps ran over the images.
        key: Digest that is the same for the same treatment of one collection of evaluations; not written, since it
            depends on the hash of the model file, which differs between trainings of the same weights.
    """

    name: str = "none"
    settings: str = ""
    steps: tuple[TreatmentStep, ...] = field(default=(), hash=False)
    applied: bool = True
    key: Annotated[str, Field(exclude=True)] = ""

    @property
    def label(self) -> str:
        """Name and settings in one text."""
        return f"{self.name} {self.settings}".strip()

    @property
    def is_worst_case(self) -> bool:
        """Whether it is several attacks, each of which an image must withstand."""
        return self.name.startswith(WORST_CASE)


NONE = Treatment()


def worst_case(attacks: Sequence[Treatment]) -> Treatment:
    """Return several attacks as one: an image withstands it if it withstands each of them.

    Its settings are those that all of them share.
    """
    steps = tuple(step for attack in attacks for step in attack.steps)
    common = {
        name: value
        for name, value in (steps[0].settings.items() if steps else ())
        if all(name in step.settings and step.settings[name] == value for step in steps)
    }
    names = list(dict.fromkeys(attack.name for attack in attacks))
    members = " and ".join(names) if len(names) == len(attacks) else f"{len(attacks)} attacks"
    name = f"{WORST_CASE} of {members}"
    settings = TreatmentStep(name, common).text
    return Treatment(name, settings, steps, key=hashlib.sha256("".join(a.key for a in attacks).encode()).hexdigest())


def treatment(entries: list[ProvenanceEntry], key: str, names: list[str]) -> Treatment:
    """Return the treatment of these entries of a provenance, or `NONE`.

    Args:
        entries: All attacks or all defenses of a dataset.
        key: Text that is the same for the same treatment.
        names: What to call each of them.
    """
    if not entries:
        return NONE
    steps = tuple(entry.step for entry in entries)
    settings = ", ".join(step.text for step in steps if step.settings)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return Treatment(" + ".join(names), settings, steps, all(entry.applied for entry in entries), digest)
