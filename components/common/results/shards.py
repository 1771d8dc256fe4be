"""What was measured of a dataset's shards, put together to what a single run over all images would measure."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from evasion.components.common.data.distances import DISTANCES, OF_ATTACK, Summary
from evasion.components.common.data.provenance import ATTACK, DEFENSE
from evasion.components.common.files import joined
from evasion.components.common.results import json_file, shares
from evasion.components.common.results.evaluation import (
    COUNTS,
    EVALUATION,
    PREDICTIONS,
    DatasetRecord,
    Evaluation,
    EvaluationFile,
    rows_of_predictions,
)
from evasion.components.common.results.tally import Tally, nonzero

Content = dict[str, Any]


class _OfDataset(Protocol):
    @property
    def dataset(self) -> DatasetRecord: ...


T = TypeVar("T", bound=_OfDataset)


def read(directories: Sequence[Path], name: str, kind: type[T], description: str, stage: str) -> list[tuple[Path, T]]:
    """Read the JSON file of each directory, and return them in the order of the shards.

    Args:
        directories: Of one dataset: a directory, or one for each shard.
        name: The file's name.
        kind: The dataclass that the file holds.
        description: What such a directory is called: `an evaluation`.
        stage: The stage that writes it.

    Raises:
        ValueError: If a directory does not hold a whole one, or a shard is missing or given twice.
    """
    parts = []
    for directory in directories:
        try:
            content = json_file.read(directory / name, kind, stage)
        except FileNotFoundError:
            raise ValueError(f"{directory} is not {description}: it has no {name}") from None
        if not (directory / PREDICTIONS).is_file():
            raise ValueError(f"{directory} is not {description}: it has no {PREDICTIONS}")
        provenance = content.dataset.provenance
        place, shards = (provenance[0].shard if provenance else None) or (0, 1)
        parts.append((shards, place, directory, content))
    parts.sort(key=lambda part: part[:2])
    if [part[:2] for part in parts] != [(len(parts), place) for place in range(len(parts))]:
        received = ", ".join(f"{place + 1} of {shards}" for shards, place, *_ in parts)
        raise ValueError(f"{description} of a sharded dataset needs each of its shards once. Received: {received}")
    return [(directory, content) for *_, directory, content in parts]


def read_evaluation(directories: Sequence[Path]) -> Evaluation:
    """Read an evaluation.

    Args:
        directories: Its directory, or those of all shards of its dataset, in any order.

    Raises:
        ValueError: If a directory does not hold a whole evaluation, or a shard is missing.
    """
    parts = read(directories, EVALUATION, EvaluationFile, "an evaluation", "infer")
    ordered = tuple(directory for directory, _ in parts)
    with belonging_together([directory for directory, _ in parts]):
        whole = parts[0][1] if len(parts) == 1 else _whole_evaluation(parts)
    return Evaluation(directories=ordered, **vars(whole))


@contextmanager
def belonging_together(directories: Sequence[Path]) -> Iterator[None]:
    """Name the directories of shards in the error of a block that merges them."""
    try:
        yield
    except (KeyError, TypeError, OSError, ValueError, zipfile.BadZipFile) as error:
        if len(directories) == 1:
            raise
        listed = ", ".join(map(str, directories))
        raise ValueError(f"{error if isinstance(error, ValueError) else repr(error)} (in {listed})") from None


def _whole_evaluation(parts: Sequence[tuple[Path, EvaluationFile]]) -> EvaluationFile:
    """Return what `evaluation.json` would hold of all images.

    Raises:
        ValueError: If the parts do not belong together.
    """
    contents = [asdict(content) for _, content in parts]
    summed = ("metrics", "distances", "attack_distances", "confusion", "checks", "input_ranges")
    common = alike(contents, apart=("dataset", "seed", *summed))
    tally = Tally.read((directory / COUNTS for directory, _ in parts), len(common["model"]["class_names"]))
    kinds = [entry["kind"] for entry in contents[0]["dataset"]["provenance"]]
    metrics = tally.result(attacked=ATTACK in kinds)
    if "right_before" in contents[0]["metrics"]:
        names = ("attack_successes", "right_before", "images")
        counts = (sum(int(each["metrics"][name]) for each in contents) for name in names)
        metrics |= shares.under_attack(*counts, defended=DEFENSE in kinds)
    checks = [each["checks"] for each in contents]
    whole = {
        **common,
        "dataset": whole_dataset([each["dataset"] for each in contents]),
        "seed": whole_seed(contents),
        "metrics": metrics,
        "distances": _distances(parts, "") if any(each["distances"] for each in contents) else {},
        "attack_distances": _distances(parts, OF_ATTACK) if any(each["attack_distances"] for each in contents) else {},
        "confusion": list(nonzero(tally.confusion)),
        "checks": {name: _sum(name, [each[name] for each in checks]) for name in checks[0]},
        "input_ranges": _whole_trials([each["input_ranges"] for each in contents]),
    }
    return json_file.from_value(EvaluationFile, whole)


def _distances(parts: Sequence[tuple[Path, EvaluationFile]], prefix: str) -> dict[str, dict[str, float]]:
    """Return the summaries of the distances of all images, in the columns whose names begin with `prefix`."""
    summary = Summary()
    for row in rows_of_predictions(directory for directory, _ in parts):
        if row.get(prefix + DISTANCES[0]):
            summary.add(row, prefix)
    return summary.describe()


def _whole_trials(parts: Sequence[Content]) -> Content:
    """Return the trials of other input ranges, summed over the parts that have them."""
    names = {name: None for part in parts for name in part}
    return {
        name: {key: sum(part[name][key] for part in parts if name in part) for key in ("correct", "images")}
        for name in names
    }


def alike(contents: Sequence[Content], apart: Iterable[str]) -> Content:
    """Return what the parts have in common, which must be all but what is named."""
    common = [{name: value for name, value in each.items() if name not in apart} for each in contents]
    for name in {name: None for each in common for name in each}:
        values = [each.get(name) for each in common]
        if any(value != values[0] for value in values):
            received = "; ".join(json.dumps(value) for value in values)
            raise ValueError(f"shards must be measured alike, but differ in {name}. Received: {received}")
    return common[0]


def whole_dataset(parts: Sequence[Content]) -> Content:
    """Return the record of the whole dataset."""
    whole = alike(parts, apart=("counts", "sha256", "provenance"))
    if len({len(part["provenance"]) for part in parts}) > 1:
        stages = "; ".join(", ".join(entry["stage"] for entry in part["provenance"]) for part in parts)
        raise ValueError(f"shards must be measured alike, but differ in their stages. Received: {stages}")
    provenance = []
    for entries in zip(*(each["provenance"] for each in parts), strict=True):
        entry = alike(entries, apart=("shard", "seed", "parent_sha256"))
        parents = [each["parent_sha256"] for each in entries]
        provenance.append(
            {**entry, "seed": whole_seed(entries), "parent_sha256": joined(parents) if all(parents) else None}
        )
    return {
        **whole,
        "counts": [sum(counts) for counts in zip(*(each["counts"] for each in parts), strict=True)],
        "provenance": provenance,
        "sha256": joined([each["sha256"] for each in parts]),
    }


def whole_seed(parts: Sequence[Content]) -> Any:
    """Return the seed, or where each part drew one, all of them."""
    seeds = [each["seed"] for each in parts]
    return seeds[0] if len(set(seeds)) == 1 else seeds


def _sum(name: str, values: Sequence[Any]) -> Any:
    """Return the sum of counts; what is no count must be the same in all parts."""
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return sum(values)
    return alike([{name: value} for value in values], apart=())[name]
