"""Files that are damaged on purpose: JSON with one value exchanged, texts and bytes with parts changed."""

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "400"))
"""Of each reader: 400 take less than a minute together, and `make fuzz` tries more."""

# Without a database of earlier failures, a run depends on nothing but the code.
fuzzed = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))

SECONDS = 2
"""Processor time that reading one file may take."""

VALUES = st.sampled_from(
    [None, True, 0, -1, 2**31, 10**30, 1e308, -0.5, 1e999, "", "x" * 5_000, "a\nb", "\0", "../..", "é\u2028", [], {}]
) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested dictionaries and lists; of a long list the beginning."""
    items = (
        content.items() if isinstance(content, dict) else enumerate(content[:3] if isinstance(content, list) else ())
    )
    for key, value in items:
        yield (*place, key)
        yield from places(value, (*place, key))


@st.composite
def json_files(draw: Any, content: Any) -> bytes:
    """The content with up to three values exchanged, removed or added; of some the text is changed as well."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 3))):
        *parents, key = draw(st.sampled_from(list(places(content)) or [()])) or (None,)
        holder = content
        for parent in parents:
            holder = holder[parent]
        match draw(st.sampled_from(["exchange", "remove", "add"])):
            case "exchange":
                holder[key] = draw(VALUES)
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = draw(VALUES)
    text = json.dumps(content).encode()
    if draw(st.integers(0, 4)) == 0:
        depth = draw(st.sampled_from([100, 250, 100_000]))
        text = text.replace(b"null", b"[" * depth + b"]" * depth, 1)
    return draw(damaged(text)) if draw(st.booleans()) else text


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """The bytes with some changed, a part removed, doubled or moved."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(changed) - 1, 0)))
        part = changed[start : start + draw(st.integers(0, 600))]
        match draw(st.sampled_from(["byte", "text", "remove", "double", "cut"])):
            case "byte" if changed:
                changed[start] = draw(st.integers(0, 255))
            case "text":
                changed[start:start] = draw(st.binary(max_size=12) | st.sampled_from([b"1e999", b"null", b'"', b"\0"]))
            case "remove":
                del changed[start : start + len(part)]
            case "double":
                changed[start:start] = part
            case "cut":
                del changed[start:]
    return bytes(changed)


def refuses(read: Callable[[], Any], error: type[Exception]) -> bool:
    """Return whether reading raised this very error, on one line and in time; anything else it raises is a failure."""
    start, text = time.process_time(), None
    try:
        read()
    except error as raised:
        text = str(raised)
    assert time.process_time() - start < SECONDS
    if text is None:
        return False
    assert text.strip()
    assert len(text.splitlines()) == 1, text
    assert len(text) < 6_000, len(text)
    return True
