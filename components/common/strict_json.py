"""JSON that others may have written, read into a declared type in a time and a memory that grow with its size alone."""

import functools
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

T = TypeVar("T")

_CONTAINERS = {"list", "tuple", "set", "frozenset", "dict"}


def parse(kind: type[T], content: bytes | str) -> T:
    """Return an instance of a dataclass from JSON.

    Of the wrong elements of a list, only the first is reported. Each error takes some 2 KB, and millions of them fit
    into a file.

    Args:
        kind: The dataclass; its `__pydantic_config__` says how strict.
        content: The JSON text.

    Raises:
        pydantic.ValidationError: The text is not JSON, or does not fit the dataclass.
    """
    instance: T = _validator(kind).validate_json(content)  # type: ignore[arg-type] # a class is hashable
    return instance


@functools.cache
def _validator(kind: Any) -> SchemaValidator:
    return SchemaValidator(_failing_fast(TypeAdapter(kind).core_schema))


def _failing_fast(schema: Any) -> Any:
    """Return a schema whose containers stop at their first error; pydantic can set that only for each field."""
    if isinstance(schema, list):
        return [_failing_fast(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: _failing_fast(part) for key, part in schema.items()}
    return parts | {"fail_fast": True} if schema.get("type") in _CONTAINERS else parts
