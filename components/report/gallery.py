"""The same images clean, attacked and defended, side by side, with what the model took them for."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from evasion.components.common.data.provenance import AWARE
from evasion.components.common.results.collection import Evaluations
from evasion.components.common.results.evaluation import Evaluation
from evasion.components.common.results.report import Picture, Pictures, Prediction
from evasion.components.common.results.treatments import NONE, Treatment

PAGE_BYTES = 8_000_000
"""Pictures of one page; beyond it a browser inside a dashboard gets slow."""
ALWAYS = 4
"""Images shown however large they are."""
AT_ONCE = 6
"""Images shown before the reader asks for more."""

Pixels = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Shot:
    """One picture; `right` is None where the model was not asked."""

    title: str
    uri: str
    predicted: str = ""
    confidence: float = 0.0
    right: bool | None = None


@dataclass(frozen=True)
class Item:
    """One original image in all its versions."""

    original: str
    label: str
    story: str
    flipped: bool
    shots: list[Shot]

    @property
    def record(self) -> Picture:
        """What `report.json` says of the image."""
        shown = [
            Prediction(shot.title, shot.predicted, shot.confidence, shot.right)
            for shot in self.shots
            if shot.right is not None
        ]
        return Picture(self.original, self.label, shown)

    @property
    def size(self) -> int:
        """How many bytes its pictures take on the page."""
        return sum(len(shot.uri) for shot in self.shots)


@dataclass(frozen=True)
class Gallery:
    """The images of one attack, the flipped ones first."""

    attack: Treatment
    items: list[Item]
    saved: int
    factor: int
    clipped: bool
    pixelated: bool

    @property
    def record(self) -> Pictures:
        """What `report.json` says of the pictures."""
        attack = self.attack.label if self.attack != NONE else None
        return Pictures(attack, self.saved, self.factor, [item.record for item in self.items])


@dataclass(frozen=True)
class _Version:
    """One evaluation's sample: pictures and predictions by original path."""

    title: str
    pictures: dict[str, Path]
    predictions: dict[str, dict[str, str]]

    @classmethod
    def of(cls, evaluation: Evaluation | None, title: str) -> _Version:
        if evaluation is None:
            return cls(title, {}, {})
        pictures = evaluation.pictures()
        predictions: dict[str, dict[str, str]] = {}
        for row in evaluation.predictions():
            original = evaluation.original(row["path"])
            if original in pictures:
                predictions[original] = row
        return cls(title, pictures, predictions)

    def right(self, original: str) -> bool | None:
        row = self.predictions.get(original)
        return None if row is None else row["correct"] == "1"

    def shot(self, original: str) -> Shot | None:
        row, path = self.predictions.get(original), self.pictures.get(original)
        uri = _data_uri(path) if path else ""
        if row is None or not uri:
            return None
        return Shot(
            self.title,
            uri,
            row["predicted"],
            float(row["confidence"]),
            row["correct"] == "1",
        )


def galleries(evaluations: Evaluations) -> list[Gallery]:
    """One gallery for each attack; without attacks, one of the clean images."""
    attacks = evaluations.attacks or [NONE]
    return [_gallery(evaluations, attack, PAGE_BYTES // len(attacks)) for attack in attacks]


def _gallery(evaluations: Evaluations, attack: Treatment, budget: int) -> Gallery:
    clean = _Version.of(evaluations.clean, "clean")
    attacked = _Version.of(evaluations.get(attack) if attack != NONE else None, "attacked")
    defended = [_defended(evaluations, attack, defense) for defense in evaluations.defenses if defense != NONE]
    versions = [clean, attacked, *defended]
    # Images that augmentation added have no original.
    known = [version for version in (clean, attacked) if version.predictions] or defended
    originals = sorted({original for version in known for original in version.predictions})
    changes = _changes(clean, attacked, originals)
    factor, clipped = _magnification(changes)

    items = []
    for original in originals:
        shots = [clean.shot(original), attacked.shot(original)]
        if original in changes:
            shots.append(Shot("difference", _difference_uri(changes[original], factor)))
        shots += [version.shot(original) for version in defended]
        shown = [shot for shot in shots if shot]
        label = next(version.predictions[original]["label"] for version in versions if original in version.predictions)
        story, flipped = _story(clean.right(original), attacked.right(original))
        if shown:
            items.append(Item(original, label, story, flipped, shown))
    ordered = _ordered(items, attack)
    return Gallery(attack, list(_within(ordered, budget)), len(items), factor, clipped, _small(versions))


def _defended(evaluations: Evaluations, attack: Treatment, defense: Treatment) -> _Version:
    """The defended images; under attack those of the attacker who knows the defense, where there are any."""
    if attack == NONE:
        return _Version.of(evaluations.get(NONE, defense), defense.label)
    attackers = evaluations.attackers(attack, defense)
    knowledge, evaluation = next(iter(attackers.items()), ("", None))
    return _Version.of(evaluation, defense.label + (f" ({AWARE})" if knowledge == AWARE else ""))


def _ordered(items: list[Item], attack: Treatment) -> list[Item]:
    """Flipped images first; without an attack, the wrong ones. Among them, one of each class before a second."""
    seen: Counter[tuple[bool, str]] = Counter()
    keys: dict[str, tuple[bool, int, str]] = {}
    for item in items:
        telling = item.flipped if attack != NONE else item.shots[0].right is False
        seen[telling, item.label] += 1
        keys[item.original] = (not telling, seen[telling, item.label], item.original)
    return sorted(items, key=lambda item: keys[item.original])


def _story(before: bool | None, after: bool | None) -> tuple[str, bool]:
    if before is None or after is None:
        return "", False
    if before and not after:
        return "flipped by the attack", True
    if before:
        return "withstands the attack", False
    return ("wrong already before the attack" if not after else "wrong before, right under attack"), False


def _within(items: list[Item], budget: int) -> Iterator[Item]:
    used = 0
    for number, item in enumerate(items):
        used += item.size
        if number >= ALWAYS and used > budget:
            return
        yield item


def _pixels(path: Path | None) -> Pixels | None:
    try:
        if path is None:
            return None
        with Image.open(path) as image:
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"), dtype=np.int16)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _changes(clean: _Version, attacked: _Version, originals: list[str]) -> dict[str, Pixels]:
    changes = {}
    for original in originals:
        before, after = _pixels(clean.pictures.get(original)), _pixels(attacked.pictures.get(original))
        if before is not None and after is not None and before.shape == after.shape:
            changes[original] = after - before
    return changes


def _magnification(changes: dict[str, Pixels]) -> tuple[int, bool]:
    """One factor for all pictures, so that they compare; a few extreme pixels may leave the scale."""
    largest = max((int(np.abs(change).max()) for change in changes.values()), default=0)
    usual = max((float(np.percentile(np.abs(change), 99.5)) for change in changes.values()), default=0.0)
    factor = max(1, int(127 / max(usual, 1.0)))
    return factor, factor * largest > 127


def _difference_uri(change: Pixels, factor: int) -> str:
    scaled = np.clip(128 + factor * change.astype(np.int32), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(scaled).save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue())


def _data_uri(path: Path) -> str:
    """The file as it is, if it is a whole PNG: what is shown is what the model was shown."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
        return _uri(path.read_bytes())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _small(versions: list[_Version]) -> bool:
    """Whether pictures are so small that smoothing them would hide their pixels."""
    first = next((path for version in versions for path in version.pictures.values()), None)
    pixels = _pixels(first)
    return pixels is not None and max(pixels.shape[:2]) < 128
