"""What the gate judges by, from options and a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.results.report import path_of
from evasion.components.common.validate import shown
from evasion.pipelines.gate.threshold import Threshold, parse

MAX_BYTES = 32 << 10
MAX_LINE = 2_000
"""What a file may have: reading `a.a.a…` takes time in the square of its length."""

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
    text = _text(config) if config else ""
    content = _parsed(text, config) if config else {}
    thresholds = [parse(each, _line(text, each)) for each in content.get("thresholds", [])]
    thresholds += [parse(each) for each in texts]
    if baseline is None and config and "baseline" in content:
        baseline = config.parent / content["baseline"]
    baseline = path_of(baseline) if baseline else None
    drop = content.get("allowed_drop", 0) if allowed_drop is None else allowed_drop
    validate.in_range("allowed_drop", drop, 0, 1)
    if not thresholds and baseline is None:
        raise ValueError(
            "gate needs a threshold or a baseline. Received: neither. Set --threshold, --config or --baseline."
        )
    return Settings(thresholds, baseline, drop, (*content.get("accept_checks", ()), *accept_checks), config)


def _text(config: Path) -> str:
    """Read the file, within the limits."""
    try:
        with config.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except FileNotFoundError:
        raise ValueError(f"there is no file {config}") from None
    except OSError as error:
        raise ValueError(f"the file {shown(str(config))} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{config} is not valid TOML: {error}") from None
    longest = max(map(len, text.splitlines()), default=0)
    if len(content) > MAX_BYTES or longest > MAX_LINE:
        size = f"{longest:,} characters in a line" if longest > MAX_LINE else "more"
        raise ValueError(
            f"{config} must have at most {MAX_BYTES:,} bytes, and {MAX_LINE:,} characters in a line. Received: {size}"
        )
    return text


def _parsed(text: str, config: Path) -> dict[str, Any]:
    """Return what the file says, each key of its type."""
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{config} is not valid TOML: it nests too deeply") from None
    except ValueError as error:  # TOMLDecodeError is one, and a number of too many digits raises one
        raise ValueError(f"{config} is not valid TOML: {error}") from None
    for key, value in content.items():
        if key not in KEYS:
            raise ValueError(f"{config} may have {', '.join(KEYS)}. Received: {shown(key)}")
        kind, rule = KEYS[key]
        mixed = kind is list and isinstance(value, list) and not all(isinstance(each, str) for each in value)
        if not isinstance(value, kind) or isinstance(value, bool) or mixed:
            raise ValueError(f"{key} in {config} must be {rule}. Received: {shown(value)}")
    return content


def _line(content: str, text: str) -> int | None:
    """Return the number of the first line that holds a text in quotes, or None."""
    places = [place for quote in "\"'" if (place := content.find(f"{quote}{text}{quote}")) >= 0]
    return content.count("\n", 0, min(places)) + 1 if places else None
