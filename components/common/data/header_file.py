"""What `dataset.json` may say: the type of each field."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic_core import from_json

from evasion.components.common import strict_json

_STRICT = ConfigDict(strict=True, extra="ignore")
_Stage = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,100}$")]


@dataclass(kw_only=True)
class _Aim:
    __pydantic_config__ = _STRICT

    stage: _Stage
    parameters: dict[str, Any]


@dataclass(kw_only=True)
class _Entry:
    """An entry of the provenance; `ProvenanceEntry` of the results describes each field."""

    __pydantic_config__ = _STRICT

    stage: _Stage
    kind: Literal["load", "attack", "defense"]
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    parent_sha256: str | None = None
    model_sha256: str | None = None
    gradient_from_logits: bool | None = None
    iterates: bool = False
    effort: str = ""
    stronger: str = ""
    knowledge: str = ""
    defense: _Aim | None = None
    draws: int | None = None
    applied: bool = True
    skipped: dict[str, str] | None = None
    shard: tuple[int, int] | None = None


@dataclass(kw_only=True)
class _File:
    __pydantic_config__ = _STRICT

    name: str
    class_names: list[str]
    counts: list[Annotated[int, Field(ge=0)]]
    image_shape: tuple[int, int, int]
    split: str
    prefix: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f\x7f]{0,1000}$")]
    provenance: list[_Entry]


def parse(text: bytes) -> dict[str, Any]:
    """Return what `dataset.json` says, each field of its type.

    Raises:
        ValueError: Which field is wrong, and how, on one line.
    """
    try:
        content = from_json(text)
        # Written again, a number such as 1e999 is refused, also among the parameters of a stage.
        strict_json.parse(_File, json.dumps(content, allow_nan=False))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{place[:200]!r}: {problem['msg']}" if place else problem["msg"]) from None
    parsed: dict[str, Any] = content
    return parsed
