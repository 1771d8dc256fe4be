"""A threshold that a report must meet: `robust_accuracy >= 0.30 at eps 0.03 for jpeg_compression`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from evasion.components.common.data.provenance import KNOWLEDGE
from evasion.components.common.validate import shown

CLEAN_ACCURACY, CLEAN_ACCURACY_DROP = "clean_accuracy", "clean_accuracy_drop"
ROBUST_ACCURACY, ATTACK_SUCCESS_RATE, GAIN = "robust_accuracy", "attack_success_rate", "gain"

AT_LEAST, AT_MOST = (">=", ">"), ("<=", "<")
COMPARATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
METRICS = {
    CLEAN_ACCURACY: AT_LEAST,
    CLEAN_ACCURACY_DROP: AT_MOST,
    ROBUST_ACCURACY: AT_LEAST,
    ATTACK_SUCCESS_RATE: AT_MOST,
    GAIN: AT_LEAST,
}
"""Each metric with the comparators that make sense of it."""
DIFFERENCES = (CLEAN_ACCURACY_DROP, GAIN)
"""Of a defense against no defense, in [-1, 1]; the others are shares in [0, 1]."""
WITHOUT_ATTACK = (CLEAN_ACCURACY, CLEAN_ACCURACY_DROP)

RULE = (
    "a threshold must be METRIC COMPARATOR NUMBER [at eps NUMBER] [for DEFENSE] [with ATTACK] [by ATTACKER], "
    "such as 'robust_accuracy >= 0.30 at eps 0.03 for jpeg_compression'"
)
MAX_LENGTH = 1_000
_FORM = re.compile(r"\s*(?P<metric>[^\s<>=]+)\s*(?P<comparator>[<>]=?)\s*(?P<rest>.*?)\s*", re.DOTALL)
_CLAUSE = re.compile(r"\s+(at\s+eps|for|with|by)(?=\s|$)")


@dataclass(frozen=True)
class Threshold:
    """One rule.

    Attributes:
        text: As it was given.
        metric: The metric that it limits.
        comparator: >=, >, <= or <.
        limit: A share or a difference of shares.
        eps: Size of the attack; None for that of each attack in the report's table.
        defense: Name of a defense with any of its settings; None for no defense, or for every one with a difference.
        attack: Name of an attack with any of its settings; None for every one.
        attacker: What the attacker knows of the defense; None for every attacker that was evaluated.
        line: Its line in the file that it comes from.
    """

    text: str
    metric: str
    comparator: str
    limit: float
    eps: float | None = None
    defense: str | None = None
    attack: str | None = None
    attacker: str | None = None
    line: int | None = None

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.comparator in AT_LEAST

    def holds(self, value: float) -> bool:
        """Whether a value meets it."""
        return COMPARATORS[self.comparator](value, self.limit)


def parse(text: Any, line: int | None = None) -> Threshold:
    """Read a threshold.

    Raises:
        ValueError: If it is none: the rule, what was received, and what is wrong with it.
    """
    if isinstance(text, str) and len(text) > MAX_LENGTH:
        raise ValueError(f"{RULE}, of at most {MAX_LENGTH:,} characters. Received: {shown(text)}")
    # Of many blanks in a row, an expression below would try every split.
    match = _FORM.fullmatch(" ".join(text.split())) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{RULE}. Received: {shown(text)}")
    metric, comparator = match["metric"], match["comparator"]
    number, *parts = _CLAUSE.split(match["rest"])
    clauses = {" ".join(word.split()): value.strip() for word, value in zip(parts[::2], parts[1::2], strict=True)}
    try:
        if metric not in METRICS:
            raise ValueError(f"METRIC must be one of {', '.join(METRICS)}, not {metric}")
        if comparator not in METRICS[metric]:
            raise ValueError(f"{metric} takes {' or '.join(METRICS[metric])}, not {comparator}")
        if len(clauses) < len(parts) // 2:
            raise ValueError("each of 'at eps', 'for', 'with' and 'by' may stand once")
        if empty := [word for word, value in clauses.items() if not value]:
            raise ValueError(f"'{empty[0]}' needs something after it")
        if metric in WITHOUT_ATTACK and (attacked := [word for word in clauses if word != "for"]):
            raise ValueError(f"{metric} is of images without attack, so '{attacked[0]}' has no meaning")
        if "by" in clauses and clauses["by"] not in KNOWLEDGE:
            raise ValueError(f"ATTACKER must be one of {', '.join(KNOWLEDGE)}, not {clauses['by']}")
        if "by" in clauses and "for" not in clauses and metric != GAIN:
            raise ValueError("an ATTACKER knows or does not know a defense: say 'for DEFENSE' as well")
        least = -1 if metric in DIFFERENCES else 0
        limit = _number(number)
        if not least <= limit <= 1:
            raise ValueError(f"{metric} must be in [{least}, 1]; write 30 % or 0.30 for thirty percent")
        eps = _number(clauses["at eps"]) if "at eps" in clauses else None
        if eps is not None and eps < 0:
            raise ValueError("eps must be at least 0")
    except ValueError as error:
        raise ValueError(f"{RULE}. Received: {shown(text)}: {error}.") from None
    return Threshold(
        " ".join(text.split()),
        metric,
        comparator,
        limit,
        eps,
        clauses.get("for"),
        clauses.get("with"),
        clauses.get("by"),
        line,
    )


def _number(text: str) -> float:
    """Read 0.03, 3 % or 8/255."""
    share, percent = re.subn(r"\s*%$", "", text)
    try:
        # float() and Fraction() would also take 1_000, inf and nan.
        if not re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|\d+/\d+", share):
            raise ValueError
        # Fraction() would compute all digits of 1e999999999, float() does not.
        number = float(Fraction(share)) if "/" in share else float(share)
        return number / 100 if percent else number
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"NUMBER must be like 0.3, 30 % or 8/255, not {text or 'nothing'}") from None
