"""What the tests of this folder share."""

import json
from pathlib import Path
from typing import Any

from lab import FGM, FGM_SMALL, JPEG, MEDIAN, SINGLE_STEP, Lab, Report, aware

from evasion.components.common.results.paired import packed, unpacked
from evasion.pipelines.gate import verdict
from evasion.pipelines.gate.gate import gate
from evasion.pipelines.gate.settings import settings

ATTACK = "fgm eps=0.3 norm=inf"
PGD = {**FGM, "stage": "pgd"}
PGD_SMALL = {**FGM_SMALL, "stage": "pgd"}


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
        case "single_step":
            # The curve, which has PGD, attacks with more than the evaluation.
            made = [
                lab.evaluate("clean", wrong=8),
                lab.evaluate("adv", SINGLE_STEP, wrong=300, wrong_before=8),
                lab.evaluate("def_median", MEDIAN, wrong=60),
                lab.evaluate("aware_median", aware(SINGLE_STEP, MEDIAN), MEDIAN, wrong=250, wrong_before=8),
            ]
            curve = lab.curve()
        case "small":
            # At 8/255 the evaluation leaves far less than the curve leaves at 0.1.
            made = [lab.evaluate("clean", wrong=8), lab.evaluate("adv", PGD_SMALL, wrong=300, wrong_before=8)]
            curve = lab.curve()
        case "strong":
            # At 0.3, too, where the curve leaves 25 %.
            made = [lab.evaluate("clean", wrong=8), lab.evaluate("adv", PGD, wrong=380, wrong_before=8)]
            curve = lab.curve()
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
