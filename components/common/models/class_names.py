"""The names of a model's outputs, as a user gives them: a list, or a file."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evasion.components.common.data.sources import fetch_file
from evasion.components.common.validate import REMOTE, ParameterError

MAX_FILE_BYTES = 16 << 20
_SUFFIXES = (".txt", ".json", ".csv", ".names")


def is_file(class_names: str) -> bool:
    """Return whether the parameter `class_names` names a file."""
    return class_names.startswith(REMOTE) or (
        "," not in class_names and (class_names.lower().endswith(_SUFFIXES) or Path(class_names).is_file())
    )


def read(class_names: str, classes: int) -> tuple[str, ...]:
    """Return the names of a model's outputs in order.

    Args:
        class_names: Names separated by commas, or a file, local or gs://: a name on each line, a JSON list, or a JSON
            object from name to index (as `class_indices` of Keras) or from index to name.
        classes: How many outputs the model has.

    Raises:
        ParameterError: If there are not as many names, or the file has another form.
    """
    names = _from_file(class_names) if is_file(class_names) else [name.strip() for name in class_names.split(",")]
    if len(names) != classes or len(set(names)) != classes or not all(names):
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise ParameterError(
            f"class_names must be {classes} different names, one for each output of the model in order. Received: "
            f"{len(names)} names, {len(set(names))} of them different: {shown}",
            "class_names",
        )
    return tuple(names)


def _from_file(address: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        content = fetch_file(address, Path(folder) / "names").read_bytes()
    if len(content) > MAX_FILE_BYTES:
        raise ParameterError(f"class_names must be a file of at most {MAX_FILE_BYTES:,} bytes.", "class_names")
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip()[:1] in ("[", "{"):
            return _from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ParameterError(
            "class_names must be a text file in UTF-8 with a name on each line, a JSON list, or a JSON object of names "
            f"and indices: {error}. Received: class_names={address!r}",
            "class_names",
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _from_json(content: Any) -> list[str]:
    if isinstance(content, list):
        return _texts(content)
    keys, values = list(content), list(content.values())
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):  # from name to index
        return _in_order(values, keys)
    return _in_order([int(key) for key in keys], values)


def _in_order(indices: Sequence[int], names: Sequence[Any]) -> list[str]:
    if sorted(indices) != list(range(len(names))):
        raise ValueError(f"indices must be 0 to {len(names) - 1}")
    return _texts([name for _, name in sorted(zip(indices, names, strict=True), key=lambda pair: pair[0])])


def _texts(names: Sequence[Any]) -> list[str]:
    if not all(isinstance(name, str | int) for name in names):
        raise ValueError("names must be texts")
    return [str(name).strip() for name in names]
