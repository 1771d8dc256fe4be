"""What the tests of this folder share."""

from pathlib import Path
from typing import Any

from lab import FGM, JPEG, MEDIAN, Lab, Report

from evasion.pipelines.gate import verdict
from evasion.pipelines.gate.gate import gate
from evasion.pipelines.gate.settings import settings

ATTACK = "fgm eps=0.3 norm=inf"


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
        case "untrained":
            made = [lab.evaluate("clean", wrong=100), lab.evaluate("adv", FGM, wrong=300, wrong_before=100)]
        case _:
            made, curve = lab.two_attackers(), lab.curve()
    Report(root / name, made, curve=curve)
    return root / name / "out" / "report.json"


def judged(report: Path, *thresholds: str, **asked: Any) -> list[verdict.Verdict]:
    usual = {"config": None, "baseline": None, "allowed_drop": None, "accept_checks": ()}
    return gate(report, settings(thresholds, **usual | asked)).verdicts


def outcome(report: Path, threshold: str) -> str:
    return judged(report, threshold)[0].judgement.value
