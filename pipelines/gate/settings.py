"""What the gate judges by, from options and a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.pipelines.gate.threshold import Threshold, parse

KEYS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "thresholds": (list, "a list of texts"),
    "baseline": (str, "the path of a report, relative to the file"),
    "allowed_drop": ((int, float), "a share such as 0.01"),
    "accept_checks": (list, "a list of names"),
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome but the report.

    Attributes:
        thresholds: What the report must meet.
        baseline: The earlier report, or None.
        allowed_drop: How far below the baseline a row may be beyond noise.
        accept_checks: Names of checks that may fail.
        config: The file that said so, or None.
    """

    thresholds: list[Threshold]
    baseline: Path | None
    allowed_drop: float
    accept_checks: tuple[str, ...]
    config: Path | None


def settings(
    texts: Iterable[str],
    config: Path | None,
    baseline: Path | None,
    allowed_drop: float | None,
    accept_checks: Iterable[str],
) -> Settings:
    """Put options and file together: lists add up, and an option stands before the file's.

    Raises:
        ValueError: If one of them breaks its rule.
    """
    content = _read(config) if config else {}
    lines = config.read_text(encoding="utf-8").splitlines() if config else []
    thresholds = [parse(text, _line(lines, text)) for text in content.get("thresholds", [])]
    thresholds += [parse(text) for text in texts]
    if baseline is None and config and "baseline" in content:
        baseline = config.parent / content["baseline"]
    baseline = report_file(baseline) if baseline else None
    drop = content.get("allowed_drop", 0) if allowed_drop is None else allowed_drop
    validate.in_range("allowed_drop", drop, 0, 1)
    if not thresholds and baseline is None:
        raise ValueError(
            "gate needs a threshold or a baseline. Received: neither. Set --threshold, --config or --baseline."
        )
    return Settings(thresholds, baseline, drop, (*content.get("accept_checks", ()), *accept_checks), config)


def report_file(path: Path) -> Path:
    """Return the report of a run's folder."""
    return path / "report.json" if path.is_dir() else path


def _read(config: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no file {config}") from None
    except (IsADirectoryError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{config} is not valid TOML: {error}") from None
    for key, value in content.items():
        if key not in KEYS:
            raise ValueError(f"{config} may have {', '.join(KEYS)}. Received: {key}")
        kind, rule = KEYS[key]
        mixed = kind is list and isinstance(value, list) and not all(isinstance(each, str) for each in value)
        if not isinstance(value, kind) or isinstance(value, bool) or mixed:
            raise ValueError(f"{key} in {config} must be {rule}. Received: {value!r}")
    return content


def _line(lines: list[str], text: str) -> int | None:
    """Return the number of the line that holds a text in quotes, or None."""
    quoted = (f'"{text}"', f"'{text}'")
    return next((number for number, line in enumerate(lines, 1) if any(each in line for each in quoted)), None)
