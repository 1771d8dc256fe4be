"""What the tests of this folder share."""

import json
from pathlib import Path
from typing import Any

from lab import FGM, JPEG, MEDIAN, Lab, Report

from evasion.components.common.results.paired import packed, unpacked
from evasion.pipelines.gate import verdict
from evasion.pipelines.gate.gate import gate
from evasion.pipelines.gate.settings import settings

ATTACK = "fgm eps=0.3 norm=inf"
PGD = {**FGM, "stage": "pgd"}


def make(root: Path, name: str) -> Path:
    """Report a model; what is wrong with it is in its name."""
    lab = Lab(root / name, images=20 if name == "few" else 400)
    curve = None
    match name:
        case "few":
            made = [lab.evaluate("clean"), lab.evaluate("adv", FGM, wrong=12)]
        case "oblivious":
            made = [
                *lab.everything(),
                lab.evaluate("def_noise", {**JPEG, "stage": "none_done", "applied": False}, wrong=8),
            ]
        case "worse":
            made = [
                lab.evaluate("clean", wrong=10),
                lab.evaluate("adv", FGM, wrong=320, wrong_before=10),
                lab.evaluate("def_median", MEDIAN, wrong=50),
            ]
        case "attacks":
            made = [
                lab.evaluate("clean", wrong=8),
                lab.evaluate("adv_fgm", FGM, wrong=296, wrong_before=8),
                lab.evaluate("adv_pgd", PGD, wrong=300, wrong_before=8),
            ]
        case "no_clean_median":
            made = [each for each in lab.two_attackers() if each.name != "def_median"]
        case "untrained":
            made = [lab.evaluate("clean", wrong=100), lab.evaluate("adv", FGM, wrong=300, wrong_before=100)]
        case _:
            made, curve = lab.two_attackers(), lab.curve()
    Report(root / name, made, curve=curve)
    return root / name / "out" / "report.json"


def reordered(report: Path, folder: Path, *cell: str | None) -> Path:
    """Copy a report, with one evaluation of which as many images are right as before, but the first, not the last."""
    content = json.loads(report.read_text())
    (found,) = [each for each in content["evaluations"] if (each["attack"], each["defense"], each["attacker"]) == cell]
    found["right"] = packed(unpacked(found["right"], content["originals"]["images"])[::-1])
    path = folder / "report.json"
    path.write_text(json.dumps(content))
    return path


def judged(report: Path, *thresholds: str, **asked: Any) -> list[verdict.Verdict]:
    usual = {"config": None, "baseline": None, "allowed_drop": None, "accept_checks": ()}
    return gate(report, settings(thresholds, **usual | asked)).verdicts


def outcome(report: Path, threshold: str) -> str:
    return judged(report, threshold)[0].judgement.value
