"""Rules for parameters. A violation raises a ValueError with the rule, the value received and what to do."""

import math
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

REMOTE = "gs://"
NORMS = ("inf", "1", "2")

LARGEST_EPS = {"inf": 1.0, "1": 3 * 2048**2, "2": math.ceil(math.sqrt(3) * 2048)}
"""The largest distance, in each norm, of two images of the largest shape: a larger `eps` is as good as this one."""

LARGEST = {
    "batch_size": 65_536,
    "eot_samples": 10_000,
    "gpus": 1_000,
    "max_iter": 100_000,
    "n_queries": 1_000_000,
    "n_target_classes": 100_000,
    "num_random_init": 10_000,
    "pgd_max_iter": 100_000,
    "shards": 10_000,
}
"""The largest counts. They are far above any that makes sense: a slip of the hand ends at once, not after days."""


class ParameterError(ValueError):
    """A parameter violates its rule.

    Args:
        message: The rule, the value received, and what to do.
        parameters: The names of the parameters involved.

    Attributes:
        parameters: Their names.
    """

    def __init__(self, message: str, *parameters: str) -> None:
        super().__init__(message)
        self.parameters = parameters


def shown(value: Any, characters: int = 200) -> str:
    """Return a value for a message: on one line, and of a long one the beginning and its length."""
    text = repr(value)
    return text if len(text) <= characters else f"{text[:characters]}… ({len(text):,} characters)"


_paths_are_local = ContextVar("paths_are_local", default=True)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Do not check in this block whether paths exist: they belong to another machine, which checks them itself."""
    token = _paths_are_local.set(False)
    try:
        yield
    finally:
        _paths_are_local.reset(token)


def positive_integer(name: str, value: Any) -> None:
    """Require an integer of at least 1 (a boolean is not an integer) and at most that of `LARGEST`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ParameterError(f"{name} must be a positive integer. Received: {name}={value!r}", name)
    _not_too_large(name, value)


def integer_in(name: str, value: Any, low: int, high: int) -> None:
    """Require an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ParameterError(f"{name} must be an integer in [{low}, {high}]. Received: {name}={value!r}", name)


def at_least(name: str, value: Any, low: int) -> None:
    """Require an integer of at least `low` and at most that of `LARGEST`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ParameterError(f"{name} must be an integer of at least {low}. Received: {name}={value!r}", name)
    _not_too_large(name, value)


def _not_too_large(name: str, value: int) -> None:
    if value > LARGEST[name]:
        raise ParameterError(f"{name} must be at most {LARGEST[name]:,}. Received: {name}={value!r}", name)


def in_range(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    include_low: bool = True,
    include_high: bool = True,
) -> None:
    """Require a finite number between `low` and `high`, including each end unless `include_*` is false."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    above = number >= low if include_low else number > low
    below = number <= min(high, sys.float_info.max) if include_high else number < high
    if not (above and below):
        if high == math.inf:
            rule = f"{'at least' if include_low else 'above'} {low:g} and finite"
        else:
            largest = f"{high:,.0f}" if 1000 <= high < 1e15 else f"{high:g}"
            rule = f"in {'[' if include_low else '('}{low:g}, {largest}{']' if include_high else ')'}"
        raise ParameterError(f"{name} must be {rule}. Received: {name}={value!r}", name)


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    """Require one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ParameterError(f"{name} must be one of {', '.join(choices)}. Received: {name}={value!r}", name)


def attack_size(norm: str, eps: float, eps_step: float) -> None:
    """Require a norm that the attacks support, and sizes that suit it."""
    one_of("norm", norm, NORMS)
    # A share of the full pixel range bounds one pixel; the norms 1 and 2 add up all of them.
    if norm == "inf" and isinstance(eps, int | float) and 1 < eps <= 255:
        raise ParameterError(
            f"eps must be in (0, 1], a share of the pixel range: {eps:g}/255 is {eps / 255:.5f}. Received: eps={eps!r}",
            "eps",
        )
    in_range("eps", eps, 0, LARGEST_EPS[norm], include_low=False)
    in_range("eps_step", eps_step, 0, LARGEST_EPS[norm], include_low=False)


def seed(value: Any) -> None:
    """Require a seed: -1 (draw one) or an integer of 32 bits, which both NumPy and TensorFlow accept."""
    integer_in("seed", value, -1, 2**32 - 1)


def sha256(name: str, value: str) -> None:
    """Require 64 hexadecimal digits, or nothing."""
    if value and (len(value) != 64 or set(value.lower()) - set("0123456789abcdef")):
        raise ParameterError(f"{name} must be 64 hexadecimal digits or empty. Received: {name}={value!r}", name)


def required(name: str, value: Any, detail: str = "") -> None:
    """Require a text that is not blank."""
    if not str(value).strip():
        raise ParameterError(f"{name} must be given{' ' + detail if detail else ''}. Received: {name}={value!r}", name)


def model_tag(value: str) -> None:
    """Require characters that a registered model's name may contain, so that `name/version` and `name@alias` work."""
    if not re.fullmatch(r"[\w .-]*", value):
        raise ParameterError(
            f"model_tag must be of letters, digits, spaces and _ . - alone. Received: model_tag={value!r}", "model_tag"
        )


def experiment(value: str) -> None:
    """Require characters that a registered model's name and a folder's name may contain: the experiment begins both."""
    if not re.fullmatch(r"\w[\w .-]*", value):
        raise ParameterError(
            "experiment must be of letters, digits, spaces and _ . - alone, the first one a letter or a digit. "
            f"Received: experiment={value!r}",
            "experiment",
        )


def existing_folder(name: str, value: str) -> None:
    """Require an existing folder that is not empty. A folder in a bucket is checked when it is read."""
    required(name, value)
    if value.startswith(REMOTE) or not _paths_are_local.get():
        return
    folder = Path(value)
    if not folder.is_dir():
        raise ParameterError(
            f"{name} must be an existing folder of <class>/<image> or gs://. Received: {name}={value!r}", name
        )
    if not any(folder.iterdir()):
        raise ParameterError(f"{name} must hold a folder for each class; it is empty. Received: {name}={value!r}", name)


def existing_file(name: str, value: str) -> None:
    """Require an existing file. A file in a bucket is checked when it is read."""
    if not (value.startswith(REMOTE) or Path(value).is_file()) and _paths_are_local.get():
        raise ParameterError(f"{name} must be an existing file or a gs:// file. Received: {name}={value!r}", name)


def no_path(name: str, value: str, rule: str) -> None:
    """Require a text that is no path and no address in a bucket; `rule` says what it must be.

    A folder that only has the same name as a model is none; one that holds a SavedModel is.
    """
    is_path = value.startswith((REMOTE, "/", "./", "../", "~"))
    if _paths_are_local.get():
        is_path = is_path or Path(value).is_file() or Path(value, "saved_model.pb").is_file()
    if is_path:
        raise ParameterError(f"{name} must be {rule}. Received: {name}={value!r}", name)


def weights(name: str, value: str) -> None:
    """Require `imagenet`, `none`, an existing file, or a file in a bucket."""
    needs_no_check = value in ("imagenet", "none") or value.startswith(REMOTE)
    if not needs_no_check and not (Path(value).is_file() if _paths_are_local.get() else value.strip()):
        raise ParameterError(
            f"{name} must be imagenet, none, an existing file or a gs:// file. Received: {name}={value!r}", name
        )
