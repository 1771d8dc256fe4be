"""One check of an evaluation: how it came out, what was found, what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        name: What was checked.
        subject: Of which evaluation, attack or defense.
        status: How it came out.
        found: What was found.
        advice: What to do; empty if nothing.
    """

    name: str
    subject: str
    status: Status
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """The check as `report.json` holds it."""
        return asdict(self)
