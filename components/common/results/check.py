"""One check of an evaluation: whether its numbers can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evasion.components.common.results.json_file import strict

Status = Literal["pass", "warn", "fail"]


@strict
@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was checked.
        subject: Of which evaluation, attack or defense.
        status: The result.
        finding: What the result rests on.
        advice: What to do; blank if nothing.
    """

    name: str
    subject: str
    status: Status
    finding: str
    advice: str = ""
