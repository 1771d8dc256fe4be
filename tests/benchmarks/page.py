"""Writes the tables of benchmarks into docs/benchmarks.md."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def put(benchmark: str, text: str) -> None:
    """Replace the text of the page between the marks of a benchmark.

    Args:
        benchmark: Its script, such as `speed.py`.
        text: Markdown.
    """
    marked = re.compile(rf"(<!-- made by {re.escape(benchmark)} -->\n).*?(<!-- end -->)", re.DOTALL)
    content, replaced = marked.subn(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", PAGE.read_text())
    if replaced != 1:
        raise RuntimeError(f"{PAGE.name} must have one place for {benchmark}. Found: {replaced}")
    PAGE.write_text(content)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
