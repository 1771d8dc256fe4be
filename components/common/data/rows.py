"""What the columns of `samples.csv` that stages add may hold."""

import math
from collections.abc import Callable, Container, Mapping

from evasion.components.common.data.distances import DISTANCES, OF_ATTACK
from evasion.components.common.data.header import ROWS, DatasetError
from evasion.components.common.validate import shown


def _number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _number_or_blank(text: str) -> bool:
    return not text or _number(text)


_NUMBER = (_number, "a finite number")
_NUMBER_OR_BLANK = (_number_or_blank, "a finite number or blank")
_FLAG = (("0", "1").__contains__, "0 or 1")
_FLAG_OR_BLANK = (("0", "1", "").__contains__, "0, 1 or blank")

_RULES: Mapping[str, tuple[Callable[[str], bool], str]] = {
    **dict.fromkeys((*DISTANCES, *(OF_ATTACK + name for name in DISTANCES)), _NUMBER),
    "clean_confidence": _NUMBER,
    "zero_gradient": _FLAG,
    **dict.fromkeys(("fooled_best", "fooled_end", "loss_rises"), _FLAG_OR_BLANK),
    "minimal_eps": _NUMBER_OR_BLANK,
}


def has_distances(columns: Container[str], prefix: str = "") -> bool:
    """Return whether there are columns of distances, with this prefix.

    Raises:
        DatasetError: There are some, but not all.
    """
    names = [prefix + name for name in DISTANCES]
    missing = [name for name in names if name not in columns]
    if missing and len(missing) < len(names):
        raise DatasetError(f"{ROWS} must have all columns {', '.join(names)}, or none. It lacks {missing[0]}.")
    return not missing


def check_row(number: int, row: Mapping[str, str]) -> None:
    """Require of each column with a rule what its rule says.

    Raises:
        DatasetError: A field breaks its rule.
    """
    for name, (allowed, rule) in _RULES.items():
        value = row.get(name)
        if value is not None and not allowed(value):
            raise DatasetError(f"{ROWS}: {name} in row {number} must be {rule}. Received: {shown(value)}")
