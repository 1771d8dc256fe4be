"""HTML pages: one file each, without network or script."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from evasion.components.common.drawing import words
from evasion.components.common.results.shares import Share


def environment(folder: Path) -> Environment:
    """Return what renders the templates of a folder, which may use those of this package.

    Class names and settings come from data that others made: every text is escaped.

    Args:
        folder: The folder of the page's own template.
    """
    templates = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        breakable=_breakable,
        interval=_interval,
        number=_number,
        percent=words.percent,
        points=words.points,
        probability=words.probability,
    )
    return templates


def _breakable(text: str) -> Markup:
    """Let a long name break after an underscore, where a narrow column needs it."""
    return Markup("_<wbr>").join(escape(part) for part in text.split("_"))


def _interval(share: Share) -> str:
    """Return the interval in percent: 31.4–37.3 %."""
    return f"{share.low * 100:.1f}–{share.high * 100:.1f}\N{NO-BREAK SPACE}%"


def _number(value: float) -> str:
    return f"{value:.4g}"
