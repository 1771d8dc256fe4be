"""The evaluation directories that `infer` wrote, read back and held together."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evasion.components.common.data import sampling
from evasion.components.common.data.header import SAFE_FOLDER
from evasion.components.common.results import shards

if TYPE_CHECKING:
    from evasion.components.common.results.outcomes import Outcomes

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
_COLUMNS = ("path", "label", "predicted", "confidence", "correct")
# A setting that a switch makes effective is not shown while the switch is off.
_SWITCHES = {"eps_step": "minimal", "ratio": "perform_data_augmentation"}
# How an attacker goes about a defense is no setting of the attack: it is the same attack by another attacker.
_ATTACKER = {"eot_samples"}

OBLIVIOUS, AWARE = "oblivious", "defense-aware"
KNOWLEDGE = (AWARE, OBLIVIOUS)
"""The two attackers, in the order in which the report shows them."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One entry of a dataset's provenance: what was done to it, how, and by which versions."""

    name: str
    kind: str
    parameters: dict[str, Any]
    seed: Any  # of a sharded dataset, a list where each shard drew its own
    versions: dict[str, str]
    parent_sha256: str | None
    model_sha256: str | None
    applied: bool
    knowledge: str = OBLIVIOUS
    aim: Aim | None = None
    skipped: int | None = None

    @classmethod
    def read(cls, entry: dict[str, Any]) -> Stage:
        """Take a stage from its entry in `evaluation.json`."""
        return cls(
            name=str(entry["stage"]),
            kind=str(entry["kind"]),
            parameters=dict(entry.get("parameters") or {}),
            seed=entry.get("seed"),
            versions=dict(entry.get("versions") or {}),
            parent_sha256=entry.get("parent_sha256"),
            model_sha256=entry.get("model_sha256"),
            applied=bool(entry.get("applied", True)),
            knowledge=str(entry.get("knowledge") or OBLIVIOUS),
            aim=Aim.read(entry["defense"]) if entry.get("defense") else None,
            skipped=len(entry["skipped"]) if entry.get("skipped") is not None else None,
        )

    @cached_property
    def settings(self) -> str:
        """The stage's own settings in short: `eps=0.3 norm=inf`, a switch by its name alone."""
        return _settings(self.parameters)

    @cached_property
    def identity(self) -> str:
        """Text that is the same for the same work, whatever data it was done on."""
        own = {name: value for name, value in self.parameters.items() if name not in _PLUMBING | _ATTACKER}
        return json.dumps([self.name, own, self.applied], sort_keys=True)


@dataclass(frozen=True)
class Aim:
    """The defense that a defense-aware attack was aimed at, as its entry says it."""

    name: str
    parameters: dict[str, Any]

    @classmethod
    def read(cls, entry: dict[str, Any]) -> Aim:
        """Take it from `{"stage": ..., "parameters": {...}}`."""
        return cls(str(entry["stage"]), dict(entry.get("parameters") or {}))

    @property
    def label(self) -> str:
        """Name and settings in one text."""
        return f"{self.name} {_settings(self.parameters)}".strip()

    def is_of(self, stage: Stage) -> bool:
        """Whether it is this defense: all settings that both name are the same."""
        common = (self.parameters.keys() & stage.parameters.keys()) - _PLUMBING
        return self.name == stage.name and all(self.parameters[name] == stage.parameters[name] for name in common)


def _settings(parameters: dict[str, Any]) -> str:
    words = []
    for name, value in parameters.items():
        switch = _SWITCHES.get(name)
        off = switch is not None and parameters.get(switch) is False
        if name in _PLUMBING | _ATTACKER or value in (None, "", False) or off:
            continue
        words.append(name if value is True else f"{name}={_short(value)}")
    return " ".join(words)


def _short(value: object) -> str:
    if isinstance(value, float):
        levels = value * 255
        # 0.03137254901960784 says less than 8/255, which is how people give an eps.
        if 0 < value < 1 and len(repr(value)) > 8 and abs(levels - round(levels)) < 1e-4:
            return f"{round(levels)}/255"
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Treatment:
    """All attacks, or all defenses, that a dataset went through, as one thing with one name."""

    key: str = ""
    name: str = "none"
    settings: str = ""
    applied: bool = True

    @property
    def label(self) -> str:
        """Name and settings in one text."""
        return f"{self.name} {self.settings}".strip()


NONE = Treatment()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model's predictions on one dataset, as `infer` measured them, in one directory or one for each shard."""

    directories: tuple[Path, ...]
    dataset: dict[str, Any]
    model: dict[str, Any]
    seed: Any
    batch_size: int | None
    versions: dict[str, str]
    metrics: dict[str, Any]
    distances: dict[str, dict[str, float]]
    confusion: list[list[int]]
    checks: dict[str, Any]
    stages: tuple[Stage, ...]

    @classmethod
    def read(cls, given: Sequence[Path]) -> Evaluation:
        """Read an evaluation.

        Args:
            given: Its directory, or those of all shards of its dataset, in any order.

        Raises:
            ValueError: If a directory does not hold a whole evaluation, or a shard is missing.
        """
        parts = shards.read(given, "evaluation.json", "an evaluation", "infer")
        directories = tuple(directory for directory, _ in parts)
        path = directories[0] / "evaluation.json"
        try:
            found = shards.evaluation(parts, _predictions(directories))
            evaluation = cls(
                directories=directories,
                dataset=found["dataset"],
                model=found["model"],
                seed=found.get("seed"),
                batch_size=found.get("batch_size"),
                versions=found.get("versions") or {},
                metrics=found["metrics"],
                distances=found.get("distances") or {},
                confusion=found.get("confusion") or [],
                checks=found.get("checks") or {},
                stages=tuple(Stage.read(entry) for entry in found["dataset"]["provenance"]),
            )
            needed = [evaluation.dataset["sha256"], evaluation.model["sha256"], evaluation.model["architecture"]]
            numbers = [evaluation.metrics[name] for name in ("images", "correct", "accuracy")]
            interval = [evaluation.metrics[name] for name in ("accuracy_low", "accuracy_high")]
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}") from None
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{path} is not as infer writes it: {error}") from None
        if not all(needed) or not all(isinstance(number, int | float) for number in numbers + interval):
            raise ValueError(f"{path} is not as infer writes it: a hash or an accuracy is empty")
        return evaluation

    @property
    def prefix(self) -> str:
        """What attacks and defenses put before the name of each image file."""
        return str(self.dataset.get("prefix") or "")

    @property
    def root_sha256(self) -> str:
        """Hash of the data as loaded, before any attack or defense."""
        later = [stage.parent_sha256 for stage in self.stages[1:] if stage.parent_sha256]
        return str(later[0] if later else self.dataset["sha256"])

    @cached_property
    def attack(self) -> Treatment:
        """The attack that made this data, or NONE."""
        stages = [stage for stage in self.stages if stage.kind == "attack"]
        # An attack on a defense that these images did not meet is another attack than one on the model alone.
        aims = [stage.aim.label if stage.aim and self.knowledge != AWARE else "" for stage in stages]
        # Another seed or another model attacked makes another attack, though its settings be the same.
        key = json.dumps([[s.identity, s.seed, s.model_sha256, aim] for s, aim in zip(stages, aims, strict=True)])
        names = [f"{s.name} (aimed at {aim})" if aim else s.name for s, aim in zip(stages, aims, strict=True)]
        return _treatment(stages, key, names)

    @cached_property
    def knowledge(self) -> str | None:
        """Which attacker made this data, one that knew the defense or not; None without an attack or a defense."""
        kinds = [stage.kind for stage in self.stages if stage.kind in ("attack", "defense")]
        if len(set(kinds)) < 2:
            return None
        if kinds != ["attack", "defense"]:
            return OBLIVIOUS
        attack, defense = (stage for stage in self.stages if stage.kind in ("attack", "defense"))
        aimed = attack.knowledge == AWARE and attack.aim is not None and attack.aim.is_of(defense)
        return AWARE if aimed else OBLIVIOUS

    @property
    def unseeded(self) -> tuple[Any, ...]:
        """What two attackers' attack has in common even where each stage drew a seed of its own."""
        return tuple((stage.identity, stage.model_sha256) for stage in self.stages if stage.kind == "attack")

    @cached_property
    def defense(self) -> Treatment:
        """The defenses that this data went through, or NONE."""
        last_attack = max((i for i, stage in enumerate(self.stages) if stage.kind == "attack"), default=-1)
        found = [(i, stage) for i, stage in enumerate(self.stages) if stage.kind == "defense"]
        names = [f"{stage.name} (before the attack)" if i < last_attack else stage.name for i, stage in found]
        stages = [stage for _, stage in found]
        return _treatment(stages, json.dumps([names, [stage.identity for stage in stages]]), names)

    @property
    def title(self) -> str:
        """What was evaluated, in words."""
        return _title(self.attack, self.defense, self.knowledge)

    def original(self, path: str) -> str:
        """The path that an image had before attacks and defenses put prefixes before its name."""
        folder, slash, name = path.rpartition("/")
        return folder + slash + name.removeprefix(self.prefix)

    def predictions(self) -> Iterator[dict[str, str]]:
        """Rows of `predictions.csv`, one after the other."""
        return _predictions(self.directories)

    def pictures(self) -> dict[str, Path]:
        """The saved sample of images, by original path; of several shards' samples the one of all images."""
        found = {}
        for directory in self.directories:
            folder = directory / "images"
            for path in sorted(path for path in folder.glob("*/*") if path.suffix.lower() == ".png"):
                found[self.original(path.relative_to(folder).as_posix())] = path
        if len(self.directories) > 1:
            found = {original: found[original] for original in sorted(found, key=sampling.rank)[: sampling.SHOWN]}
        return found


def _predictions(directories: Iterable[Path]) -> Iterator[dict[str, str]]:
    for directory in directories:
        path = directory / "predictions.csv"
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if missing := [name for name in _COLUMNS if row.get(name) is None]:
                    raise ValueError(f"{path} lacks {', '.join(missing)}")
                yield row


def _title(attack: Treatment, defense: Treatment, knowledge: str | None) -> str:
    parts = [treatment.label for treatment in (attack, defense) if treatment != NONE]
    return (" + ".join(parts) or "clean") + (f" ({AWARE})" if knowledge == AWARE else "")


def _treatment(stages: list[Stage], key: str, names: list[str]) -> Treatment:
    if not stages:
        return NONE
    settings = ", ".join(stage.settings for stage in stages if stage.settings)
    return Treatment(key, " + ".join(names), settings, all(stage.applied for stage in stages))


@dataclass
class Evaluations:
    """All evaluations of one report: the same model, the same original images, each cell filled once."""

    cells: dict[tuple[str, str, str | None], Evaluation] = field(default_factory=dict)
    attacks: list[Treatment] = field(default_factory=list)
    defenses: list[Treatment] = field(default_factory=lambda: [NONE])
    repeated: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self.cells.values())

    def get(
        self, attack: Treatment = NONE, defense: Treatment = NONE, knowledge: str | None = OBLIVIOUS
    ) -> Evaluation | None:
        """The evaluation of this attack with this defense, if there is one; `knowledge` counts where both are."""
        return self.cells.get((attack.key, defense.key, None if NONE in (attack, defense) else knowledge))

    def attackers(self, attack: Treatment, defense: Treatment) -> dict[str, Evaluation]:
        """The evaluations of this attack with this defense by what the attacker knew, the defense-aware one first."""
        if NONE in (attack, defense):
            return {}
        found = {knowledge: self.get(attack, defense, knowledge) for knowledge in KNOWLEDGE}
        return {knowledge: evaluation for knowledge, evaluation in found.items() if evaluation}

    def of(self, attack: Treatment) -> list[Evaluation]:
        """All evaluations of this attack, whatever the defense."""
        return [evaluation for (key, _, _), evaluation in self.cells.items() if key == attack.key]

    @property
    def knowledge(self) -> list[str]:
        """Which attackers there are, the defense-aware one first."""
        there = {evaluation.knowledge for evaluation in self}
        return [knowledge for knowledge in KNOWLEDGE if knowledge in there]

    @cached_property
    def outcomes(self) -> Outcomes:
        """Which images each evaluation got right."""
        from evasion.components.common.results.outcomes import Outcomes

        return Outcomes(self.clean or self.first)

    @property
    def first(self) -> Evaluation:
        """Any evaluation, for what all have in common."""
        return next(iter(self))

    @property
    def clean(self) -> Evaluation | None:
        """The evaluation of the original images."""
        return self.get()

    def placed(self) -> list[tuple[str, Treatment, Treatment, Evaluation]]:
        """Every evaluation with its name as the report shows it, attack and defense, in the order of the table."""
        found = []
        for attack in [NONE, *self.attacks]:
            for defense in self.defenses:
                for knowledge in (None,) if NONE in (attack, defense) else KNOWLEDGE:
                    evaluation = self.get(attack, defense, knowledge)
                    if evaluation:
                        found.append((_title(attack, defense, knowledge), attack, defense, evaluation))
        return found

    def titles(self) -> list[tuple[str, Evaluation]]:
        """Every evaluation with its name, in the same order."""
        return [(title, evaluation) for title, _, _, evaluation in self.placed()]


def contained(folders: Sequence[Path]) -> list[list[Path]]:
    """Return of each evaluation its directory, or those of its shards, for `collect`.

    Args:
        folders: What `infer` wrote: of all datasets, or of each shard.

    Raises:
        ValueError: If one does not hold what it lists.
    """
    found: dict[str, list[Path]] = {}
    for folder in folders:
        path = folder / "evaluations.json"
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{folder} is not an evaluation: it has no {path.name}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(names, list) or not all(
            isinstance(name, str) and SAFE_FOLDER.fullmatch(name) for name in names
        ):
            raise ValueError(f"{path} is not as infer writes it: it must list names of folders")
        for name in names:
            found.setdefault(name, []).append(folder / name)
    return list(found.values())


def collect(directories: Iterable[Sequence[Path]]) -> Evaluations:
    """Read evaluations and hold them together.

    Args:
        directories: Of each evaluation its directory, or those of its shards, all in any order.

    Returns:
        The evaluations by attack and defense.

    Raises:
        ValueError: If there is none, or if they are of different models or of different original images.
    """
    read = [Evaluation.read(given) for given in directories]
    if not read:
        raise ValueError("report needs at least one evaluation. Received: none. Connect the output of infer to it.")
    _same("model", "Make a report for each model.", {e: f"{e.model['architecture']} {e.model['sha256']}" for e in read})
    _same("original dataset", "Make a report for each dataset.", {e: e.root_sha256 for e in read})

    together = Evaluations()
    for evaluation in read:
        attack = _attack(evaluation, read)
        defense = _place(together, attack, evaluation)
        if defense is None:
            together.repeated.append(evaluation.title)
            continue
        together.cells[attack.key, defense.key, evaluation.knowledge] = evaluation
        if attack != NONE and attack not in together.attacks:
            together.attacks.append(attack)
        if defense not in together.defenses:
            together.defenses.append(defense)
    together.attacks = _distinct(together.attacks, list(together))
    return together


def _same(what: str, advice: str, values: dict[Evaluation, str]) -> None:
    if len(set(values.values())) > 1:
        listed = "; ".join(f"{evaluation.title}: {value}" for evaluation, value in values.items())
        raise ValueError(f"evaluations must be of one {what}. Received: {listed}. {advice}")


def _attack(evaluation: Evaluation, read: list[Evaluation]) -> Treatment:
    """The attack; of a defense-aware one the oblivious counterpart, even where each drew a seed of its own."""
    if evaluation.knowledge != AWARE:
        return evaluation.attack
    alike = [e.attack for e in read if e.knowledge != AWARE and e.unseeded == evaluation.unseeded]
    return evaluation.attack if evaluation.attack in alike or not alike else alike[0]


def _place(together: Evaluations, attack: Treatment, evaluation: Evaluation) -> Treatment | None:
    """Find a free cell; no defense means that the very same data is there already."""
    defense, run = evaluation.defense, 1
    while there := together.get(attack, defense, evaluation.knowledge):
        if there.dataset["sha256"] == evaluation.dataset["sha256"]:
            return None
        run += 1
        plain = evaluation.defense
        defense = Treatment(f"{plain.key}#{run}", f"{plain.name} (run {run})", plain.settings, plain.applied)
    return defense


def _distinct(attacks: list[Treatment], evaluations: list[Evaluation]) -> list[Treatment]:
    """Add the seed to attacks that would read the same."""
    labels = [attack.label for attack in attacks]
    named = []
    for attack in attacks:
        if labels.count(attack.label) > 1:
            seeds = next(
                [stage.seed for stage in evaluation.stages if stage.kind == "attack"]
                for evaluation in evaluations
                if evaluation.attack == attack
            )
            settings = f"{attack.settings} seed={','.join(map(str, seeds))}".strip()
            named.append(Treatment(attack.key, attack.name, settings, attack.applied))
        else:
            named.append(attack)
    return named
