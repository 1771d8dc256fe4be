"""What was measured of a dataset's shards, put together to what a single run over all images would have found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evasion.components.common.data.distances import DISTANCES, Summary
from evasion.components.common.files import joined
from evasion.components.common.results import shares
from evasion.components.common.results.tally import Tally, nonzero

Content = dict[str, Any]


def read(directories: Sequence[Path], file: str, what: str, stage: str) -> list[tuple[Path, Content]]:
    """Read the JSON file of each directory, and return them in the order of the shards.

    Args:
        directories: Of one dataset: a directory, or one for each shard.
        file: The file's name.
        what: What such a directory is called.
        stage: The stage that writes it.

    Raises:
        ValueError: If a directory does not hold a whole one, or a shard is missing or there twice.
    """
    found = []
    for directory in directories:
        path = directory / file
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            provenance = content["dataset"].get("provenance")
            place, shards = (provenance[0].get("shard") if provenance else None) or (0, 1)
        except FileNotFoundError:
            raise ValueError(f"{directory} is not {what}: it has no {file}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}") from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not as {stage} writes it: {error}") from None
        if not (directory / "predictions.csv").is_file():
            raise ValueError(f"{directory} is not {what}: it has no predictions.csv")
        found.append((shards, place, directory, content))
    found.sort(key=lambda each: each[:2])
    if [each[:2] for each in found] != [(len(found), place) for place in range(len(found))]:
        told = ", ".join(f"{place + 1} of {shards}" for shards, place, *_ in found)
        raise ValueError(f"{what} of a sharded dataset needs each of its shards once. Received: {told}")
    return [(directory, content) for *_, directory, content in found]


def evaluation(parts: Sequence[tuple[Path, Content]], rows: Iterable[dict[str, str]]) -> Content:
    """Return what `evaluation.json` would hold of all images.

    Args:
        parts: Directories that `infer` wrote, with the content of their `evaluation.json`.
        rows: The rows of all their predictions, in order.

    Raises:
        ValueError: If the parts do not belong together.
    """
    contents = [content for _, content in parts]
    if len(contents) == 1:
        return contents[0]
    whole = _alike(contents, apart=("dataset", "seed", "metrics", "distances", "confusion", "checks"))
    tally = Tally.read((directory / "counts.npz" for directory, _ in parts), len(whole["model"]["class_names"]))
    found = tally.result()
    if "right_before" in contents[0]["metrics"]:
        counted = (
            sum(int(each["metrics"][name]) for each in contents) for name in ("attack_successes", "right_before")
        )
        found |= shares.success(*counted)
    distances = Summary()
    if any(each["distances"] for each in contents):
        for row in rows:
            if row.get(DISTANCES[0]):
                distances.add(row)
    checks = [each["checks"] for each in contents]
    return {
        **whole,
        "dataset": _dataset([each["dataset"] for each in contents]),
        "seed": _seed(contents),
        "metrics": found,
        "distances": distances.describe(),
        "confusion": list(nonzero(tally.confusion)),
        "checks": {name: _sum(name, [each[name] for each in checks]) for name in checks[0]},
    }


def curve(contents: Sequence[Content]) -> Content:
    """Return what `curve.json` would hold of all images.

    Args:
        contents: Those of the parts' `curve.json`.

    Raises:
        ValueError: If the parts do not belong together.
    """
    if len(contents) == 1:
        return contents[0]
    whole = _alike(contents, apart=("dataset", "seed", "chance", "images", "curves", "controls"))
    dataset = _dataset([each["dataset"] for each in contents])
    lines = []
    for several in zip(*(each["curves"] for each in contents), strict=True):
        line = _alike(several, apart=("points",))
        points = zip(*(each["points"] for each in several), strict=True)
        lines.append({**line, "points": [_counted(point) for point in points]})
    controls = [each["controls"] for each in contents]
    return {
        **whole,
        "dataset": dataset,
        "seed": _seed(contents),
        "chance": 1 / sum(count > 0 for count in dataset["counts"]),
        "images": sum(each["images"] for each in contents),
        "curves": lines,
        "controls": {name: _counted([each[name] for each in controls]) for name in controls[0]},
    }


def _alike(contents: Sequence[Content], apart: Iterable[str]) -> Content:
    """Return what the parts have in common, which must be all but what is named."""
    common = [{name: value for name, value in each.items() if name not in apart} for each in contents]
    for name in {name: None for each in common for name in each}:
        values = [each.get(name) for each in common]
        if any(value != values[0] for value in values):
            told = "; ".join(json.dumps(value) for value in values)
            raise ValueError(f"shards must be made alike, but differ in {name}. Received: {told}")
    return common[0]


def _dataset(parts: Sequence[Content]) -> Content:
    whole = _alike(parts, apart=("counts", "sha256", "provenance"))
    provenance = []
    for entries in zip(*(each["provenance"] for each in parts), strict=True):
        entry = _alike(entries, apart=("shard", "seed", "parent_sha256"))
        parents = [each["parent_sha256"] for each in entries]
        provenance.append({**entry, "seed": _seed(entries), "parent_sha256": joined(parents) if all(parents) else None})
    return {
        **whole,
        "counts": [sum(counts) for counts in zip(*(each["counts"] for each in parts), strict=True)],
        "provenance": provenance,
        "sha256": joined([each["sha256"] for each in parts]),
    }


def _seed(parts: Sequence[Content]) -> Any:
    """Return the seed, or where each part drew one, all of them."""
    seeds = [each["seed"] for each in parts]
    return seeds[0] if len(set(seeds)) == 1 else seeds


def _counted(parts: Sequence[Content]) -> Content:
    return {**_alike(parts, apart=("correct",)), "correct": sum(each["correct"] for each in parts)}


def _sum(name: str, values: Sequence[Any]) -> Any:
    """Return the sum of counts; what is no count must be the same in all parts."""
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return sum(values)
    return _alike([{name: value} for value in values], apart=())[name]
