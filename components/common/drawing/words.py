"""Numbers and lists as people read them."""


def percent(value: float) -> str:
    """Return a share as people read it: 96.1 %."""
    return f"{value * 100:.1f}\N{NO-BREAK SPACE}%"


def points(value: float) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    return f"{value * 100:+.1f}".replace("-", "\N{MINUS SIGN}")


def probability(p: float) -> str:
    """Return a p-value as people read it: `p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def listed(words: list[str]) -> str:
    """Return words as a sentence lists them: a, b and c."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]
