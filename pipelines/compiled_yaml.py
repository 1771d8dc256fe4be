"""Writes the YAML that kfp compiles from a pipeline or a step, in a form with readable diffs."""

from pathlib import Path
from typing import Any

import yaml

INLINE = 220  # longest mapping or list written on one line, in characters: a parameter with its description


def compile_to(compiled: Any, path: Path) -> Path:
    """Write the YAML of a pipeline or a step atomically: an existing file is replaced only by a complete one.

    The content equals that of kfp's compiler, in a third of the lines.
    """
    from kfp import compiler

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.unfinished.yaml")
    try:
        compiler.Compiler().compile(compiled, str(unfinished))
        text = unfinished.read_text(encoding="utf-8")
        unfinished.write_text(_dense(text), encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _dense(text: str) -> str:
    """Return the same YAML with small collections on one line, and with the comments at its top."""
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    return comments + yaml.dump_all(yaml.safe_load_all(text), Dumper=_Dense, width=10**6, allow_unicode=True)


class _Dense(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's interface
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        node.flow_style = _length(node) <= INLINE
        return node

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = _length(node) <= INLINE
        return node


def _text(dumper: _Dense, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_Dense.add_representer(str, _text)


def _length(node: yaml.Node) -> int:
    """Return the approximate length of a node on one line, in characters."""
    if isinstance(node, yaml.MappingNode):
        return sum(_length(key) + _length(value) + 4 for key, value in node.value)
    if isinstance(node, yaml.SequenceNode):
        return sum(_length(item) + 2 for item in node.value)

    return len(node.value) + 2
