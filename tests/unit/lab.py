"""Evaluation directories with real pictures in them, security curves, and the report of them."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evasion.components.common.results.shares import share
from evasion.components.report import task

LOAD = {"stage": "load_dataset", "kind": "load", "parameters": {"data_dir": "digits"}, "seed": 0}
FGM = {"stage": "fgm", "kind": "attack", "seed": 1, "prefix": "adv_", "parameters": {"eps": 0.3, "norm": "inf"}}
# Most tests are not about how many steps an attack takes; those that are use SINGLE_STEP.
FGM["iterates"] = True
SINGLE_STEP = {**FGM, "iterates": False}
AUTO_ATTACK = {**FGM, "stage": "auto_attack", "gradient_from_logits": True}
AUTO_ATTACK["parameters"] = {"eps": 0.3, "norm": "inf", "members": "apgd-ce,apgd-t,square"}
FGM_SMALL = {**FGM, "parameters": {"eps": 8 / 255, "norm": "inf"}}
JPEG = {"stage": "jpeg_compression", "kind": "defense", "seed": 2, "prefix": "def_"}
JPEG |= {"parameters": {"quality": 75, "apply_predict": True, "batch_size": 32}, "applied": True}
MEDIAN = {"stage": "spatial_smoothing", "kind": "defense", "seed": 2, "prefix": "def_"}
MEDIAN |= {"parameters": {"window_size": 3}, "applied": True}
NOISE = {"stage": "gaussian_augmentation", "kind": "defense", "seed": 2, "prefix": "def_"}
NOISE |= {"parameters": {"sigma": 0.1, "ratio": 1.0, "perform_data_augmentation": False}, "applied": False}
# Of an attack that finds no fault, and has members with gradients and without.
PLAIN_CHECKS = {"zero_gradient_images": 0, "gradient_from_logits": True, "black_box_only_images": 0}
# Of the security curve: how many images are wrong under each control with the median.
MEDIAN_CONTROLS = {"clean": 60, "saved": 250, "noise": 62, "pgd": 300}


def aware(attack: dict[str, Any], defense: dict[str, Any]) -> dict[str, Any]:
    """The attack by one who knows the defense."""
    aim = {"stage": defense["stage"], "parameters": defense["parameters"]}
    return {**attack, "knowledge": "defense-aware", "defense": aim}


class Lab:
    """Writes evaluation directories of one model on one dataset, as `infer` does."""

    def __init__(self, root: Path, images: int = 400, classes: tuple[str, ...] = tuple("0123456789"), side: int = 8):
        self.root = root
        self.classes = classes
        self.labels = [i % len(classes) for i in range(images)]
        self.model = {"architecture": "le_net", "sha256": "m" * 64, "weights": "trained", "class_names": list(classes)}
        self.model |= {"name": "demo_le_net", "version": "1", "input_shape": [8, 8, 1]}
        self.pixels = np.random.default_rng(0).integers(90, 160, (min(images, 24), side, side), dtype=np.uint8)
        self.data = "d" * 64

    def evaluate(
        self,
        name: str,
        *stages: dict[str, Any],
        wrong: int = 0,
        shift: int = 0,
        doubled: bool = False,
        checks: dict[str, Any] | None = None,
        pictures: bool = True,
        rate: bool = True,
        wrong_before: int = 0,
        distance: float = 0.3,
        attack_distance: float | None = None,
        spared: int = 0,
        minimal: list[str] | None = None,
    ) -> Path:
        """Evaluate: of the images the first `wrong` ones are taken for the next class, but for the first `spared`."""
        folder = self.root / name
        folder.mkdir(parents=True)
        provenance, parent = [{**LOAD, "versions": {"numpy": "2.4.6"}, "parent_sha256": None}], self.data
        for stage in stages:
            entry = {key: value for key, value in stage.items() if key != "prefix"}
            if stage["kind"] == "attack":
                entry.setdefault("model_sha256", self.model["sha256"])
            provenance.append({**entry, "versions": {"numpy": "2.4.6"}, "parent_sha256": parent})
            parent = f"{name}-{stage['stage']}".ljust(64, "0")
        prefix = "".join(stage["prefix"] for stage in reversed(stages))
        rows, confusion = [], Counter()
        for number, label in enumerate(self.labels):
            predicted = (label + 1) % len(self.classes) if spared <= number < wrong else label
            confusion[label, predicted] += 1
            row = {"label": self.classes[label], "source": "", "predicted": self.classes[predicted]}
            row |= {"confidence": 0.75, "correct": int(predicted == label)}
            row |= {"minimal_eps": minimal[number]} if minimal else {}
            stem = f"{number:04}.png"
            rows += [{"path": f"{self.classes[label]}/{prefix}{stem}", **row}]
            if doubled:
                rows += [{"path": f"{self.classes[label]}/{prefix}{number:04}_1.png", **row}]
        if pictures:
            for number, image in enumerate(self.pixels):
                path = folder / "images" / self.classes[self.labels[number]] / f"{prefix}{number:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image + np.uint8(shift)).save(path)
                if doubled:
                    Image.fromarray(image).save(path.with_name(f"{path.stem}_1.png"))
        with (folder / "predictions.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        correct = sum(row["correct"] for row in rows)
        metrics: dict[str, Any] = {"images": len(rows), "correct": correct}
        attacked = any(stage["kind"] == "attack" for stage in stages)
        metrics |= share("accuracy_under_attack" if attacked else "accuracy", correct, len(rows))
        if attacked and rate:
            before, successes = len(self.labels) - wrong_before, max(wrong - wrong_before, 0)
            metrics |= {"right_before": before, "attack_successes": successes}
            metrics |= share("attack_success_rate", successes, before)
        moved, of_attack = (
            dict.fromkeys(("mean", "median", "stdev", "iqr", "min", "max"), each)
            for each in (distance, attack_distance)
        )
        content = {
            "dataset": {
                "name": name,
                "sha256": parent,
                "prefix": prefix,
                "image_shape": [8, 8, 1],
                "counts": [self.labels.count(index) * (1 + doubled) for index in range(len(self.classes))],
                "split": "testing",
                "class_names": list(self.classes),
                "provenance": provenance,
            },
            "model": self.model,
            "seed": 0,
            "batch_size": 32,
            "versions": {"keras": "3.15.1"},
            "metrics": metrics,
            "distances": dict.fromkeys(("l_2_norm", "l_infinity_norm"), moved) if stages else {},
            "attack_distances": {"l_infinity_norm": of_attack} if attack_distance is not None else {},
            "confusion": [[true, predicted, count] for (true, predicted), count in sorted(confusion.items())],
            "checks": {"saturated_images": 0} | (PLAIN_CHECKS if attacked else {}) | (checks or {}),
        }
        (folder / "evaluation.json").write_text(json.dumps(content, allow_nan=False))
        return folder

    def everything(self) -> list[Path]:
        """Clean, attacked, and two defenses of which only smoothing helps."""
        return [
            self.evaluate("clean", wrong=8),
            self.evaluate("adv", FGM, wrong=300, shift=20, wrong_before=8),
            self.evaluate("def_jpeg", JPEG, wrong=9),
            self.evaluate("def_adv_jpeg", FGM, JPEG, wrong=296, shift=21, wrong_before=8),
            self.evaluate("def_median", MEDIAN, wrong=60),
            self.evaluate("def_adv_median", FGM, MEDIAN, wrong=150, shift=10, wrong_before=8),
        ]

    def two_attackers(self) -> list[Path]:
        """The same, and an attacker who knows each defense: smoothing helps less, JPEG not at all."""
        return [
            *self.everything(),
            self.evaluate("aware_jpeg", aware(FGM, JPEG), JPEG, wrong=301, shift=22, wrong_before=8),
            self.evaluate("aware_median", aware(FGM, MEDIAN), MEDIAN, wrong=250, shift=12, wrong_before=8),
        ]

    def curve(self, name: str = "curve", **changed: Any) -> Path:
        """Draw a security curve: of the images the first ones are wrong, the more the larger eps is."""
        folder = self.root / name
        folder.mkdir()
        n = len(self.labels)
        known = {f"{control}_{MEDIAN['stage']}": count for control, count in MEDIAN_CONTROLS.items()}
        wrong = {"clean": 8, "computed": 300, "saved": 300, "noise": 9, "pgd": 350, **known} | changed.pop("wrong", {})
        smooth = {"smoothness": changed.pop("smoothness", 0.9)}
        eps = (0.0, 1 / 255, 0.1, 0.3, changed.pop("largest", 1.0))

        def line(perturbation: str, knowledge: str | None, defense: dict[str, Any] | None, *robust: int) -> Any:
            points = [{"eps": size, "robust": count, "correct": count} for size, count in zip(eps, robust, strict=True)]
            aim = {key: defense[key] for key in ("stage", "parameters")} if defense else None
            return {"perturbation": perturbation, "knowledge": knowledge, "defense": aim, "points": points}

        right = changed.pop("right", (392, 390, 250, 100, 30))
        unbounded = changed.pop("unbounded", 0)
        content = {
            "schema_version": 2,
            "attack": "fgm",
            "norm": "inf",
            "eps": 0.3,
            "chance": 0.1,
            "images": n,
            "seed": 1,
            "batch_size": 32,
            "eot_samples": 8,
            "eps_values": "",
            "pgd_max_iter": 10,
            "dataset": {
                "name": "load_dataset",
                "sha256": self.data,
                "prefix": "",
                "image_shape": [8, 8, 1],
                "counts": [self.labels.count(index) for index in range(len(self.classes))],
                "split": "testing",
                "class_names": list(self.classes),
                "provenance": [{**LOAD, "versions": {"numpy": "2.4.6"}, "parent_sha256": None}],
            },
            "model": self.model,
            "versions": {},
            "curves": [
                line("fgm", None, None, *right),
                line("pgd", None, None, *right[:4], unbounded),
                line("worst case", None, None, *right[:4], unbounded),
                line("noise", None, None, 392, 392, 391, 391, 200),
                line("fgm", "oblivious", MEDIAN, 340, 340, 310, 250, 40),
                line("fgm", "defense-aware", MEDIAN, 340, 339, 290, 150, 30),
                line("pgd", "oblivious", MEDIAN, 340, 340, 310, 250, 20),
                line("pgd", "defense-aware", MEDIAN, 340, 339, 290, 150, unbounded),
                line("worst case", None, MEDIAN, 340, 339, 290, 150, unbounded),
                line("noise", None, MEDIAN, 340, 340, 339, 338, 200),
            ],
            "controls": {
                name: {
                    "correct": n - count,
                    "robust": n - count,
                    **({"max_iter": 10, "eps_step": 0.05} if name == "pgd" else {}),
                }
                for name, count in wrong.items()
            },
        }
        (folder / "curve.json").write_text(
            json.dumps(
                content
                | {name: content[name] | value if isinstance(value, dict) else value for name, value in changed.items()}
            )
        )
        with (folder / "predictions.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "label", *wrong, *smooth])
            writer.writeheader()
            for number, label in enumerate(self.labels):
                told: dict[str, Any] = dict(smooth) if number < 50 else {}
                told |= {
                    name: self.classes[(label + (number < count)) % len(self.classes)] for name, count in wrong.items()
                }
                writer.writerow(
                    {"path": f"{self.classes[label]}/{number:04}.png", "label": self.classes[label], **told}
                )
        return folder


def together(evaluations: list[Path], root: Path) -> Path:
    """The folder that `infer` writes of several datasets: a folder of each, which are there already, and their list."""
    folder = evaluations[0].parent if evaluations else root
    (folder / "evaluations.json").write_text(json.dumps([each.name for each in evaluations]))
    return folder


class Report:
    """A report that was made, read back."""

    def __init__(self, folder: Path, evaluations: list[Path], floor: float = 0.9, curve: Path | None = None):
        self.metrics = task.report(
            evaluation=together(evaluations, folder),
            evaluation_shards=[],
            curve=curve,
            curve_shards=[],
            html=folder / "out" / "report.html",
            summary=folder / "out" / "report.json",
            clean_accuracy_floor=floor,
        )
        self.page = (folder / "out" / "report.html").read_text().replace("<wbr>", "")
        self.json = json.loads((folder / "out" / "report.json").read_text())

    @property
    def table(self) -> list[dict[str, Any]]:
        """The rows, with names and settings in place of attack and defense, and what they are judged by."""
        return [
            {
                **row,
                **row["judged"],
                "attack": row["attack"]["name"],
                "attack_settings": row["attack"]["settings"],
                "defense": row["defense"]["name"],
                "settings": row["defense"]["settings"],
                "applied": row["defense"]["applied"],
            }
            for row in self.json["table"]
        ]

    def row(self, defense: str, attack: str = "fgm") -> dict[str, Any]:
        """The one row of the table with these names."""
        (row,) = [row for row in self.table if (row["defense"], row["attack"]) == (defense, attack)]
        return row

    def checks(self, name: str) -> list[tuple[str, str]]:
        """Status and finding of a check."""
        return [(check["status"], check["finding"]) for check in self.json["checks"] if check["name"] == name]
