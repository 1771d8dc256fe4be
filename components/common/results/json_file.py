"""JSON files of results: a dataclass writes each of them and reads it back, validated by pydantic."""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from evasion.components.common import strict_json
from evasion.components.common.validate import shown

T = TypeVar("T")

MAX_BYTES = 32 << 20
"""The largest file that is read: of 1,000 classes and 50,000 images, a report has at most some 20 MB."""

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def strict(cls: type[T]) -> type[T]:
    """Make a dataclass, when it is read from JSON, take no type but those that it declares, and finite numbers only."""
    cls.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    return cls


def to_text(content: Any) -> str:
    """Return a dataclass as JSON text.

    Raises:
        ValueError: A number in it is not finite.
    """
    values = TypeAdapter(type(content)).dump_python(content)
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    # A confusion matrix has a list of three numbers for each pair of classes. Only outside of strings are there lines.
    return re.sub(r"\[\n\s+\d+(,\n\s+\d+)*\n\s+\]", lambda numbers: re.sub(r"\s+", "", numbers[0]), text)


def from_value(kind: type[T], value: Any) -> T:
    """Return an instance of a dataclass from nested dictionaries and lists, such as `dataclasses.asdict` returns.

    Raises:
        ValueError: The value does not fit the dataclass.
    """
    try:
        return strict_json.parse(kind, json.dumps(value, allow_nan=False))
    except ValidationError as error:
        raise ValueError(f"{kind.__name__} {_explained(error, 'this version')}") from None


def read(path: Path, kind: type[T], stage: str) -> T:
    """Read the dataclass that a stage wrote.

    Args:
        path: The file.
        kind: The dataclass.
        stage: The stage, for the error.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, too large, or of another version.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} must have at most {MAX_BYTES >> 20} MiB. Received: more")
    try:
        return strict_json.parse(kind, content)
    except ValidationError as error:
        raise ValueError(f"{path} {_explained(error, stage)}") from None


def _explained(error: ValidationError, stage: str) -> str:
    """Return what the first problem is, in words that follow the file's name."""
    problems = error.errors(include_url=False)
    problem = next((one for one in problems if one["loc"][-1:] == ("schema_version",)), problems[0])
    # For a value that may be of several types, pydantic adds the type that it tried.
    parts = [str(part) for part in problem["loc"] if not re.fullmatch(r"int|float|list\[.*\]", str(part))]
    # A name in the file may hold a line end, or be of any length.
    place = ".".join(part if re.fullmatch(r"[\w -]{1,100}", part) else shown(part) for part in parts)
    if problem["type"] == "json_invalid":
        return f"is not valid JSON: {problem['ctx']['error']}"
    if place.endswith("schema_version") and problem["type"] == "literal_error":
        return (
            f"must be of schema_version {problem['ctx']['expected']}. Received: {shown(problem['input'])}. "
            "Run the pipeline again with this version."
        )
    if problem["type"] == "missing":
        return f"lacks {place}"
    message = problem["msg"]
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
    elif len(problems) > 1 and place and {"int_type", "float_type"} & {one["type"] for one in problems}:
        message = "Input should be a number"
    return f"is not as {stage} writes it: {f'{place}: ' if place else ''}{message}"
