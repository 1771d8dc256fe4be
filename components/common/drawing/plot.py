"""A plot of accuracy over the size of an attack: the coordinates that the template draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from evasion.components.common.results.shares import Share

WIDTH, HEIGHT = 1000, 430
LEFT, RIGHT, TOP, BOTTOM = 52, 982, 26, 376
ZERO, FIRST = 70, 132
"""A logarithmic axis has no 0: it stands by itself left of the smallest size, behind a break."""
MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-4.8L4.6,3.4H-4.6z",
    "M0,-5L5,0L0,5L-5,0z",
    "M0,4.8L4.6,-3.4H-4.6z",
    "M-1.4,-4.6h2.8v3.2h3.2v2.8h-3.2v3.2h-2.8v-3.2h-3.2v-2.8h3.2z",
    "M-4.6,-2.6h9.2v5.2h-9.2z",
    "M-2.6,-4.6h5.2v9.2h-5.2z",
)
"""One a color, so that lines differ without it."""


@dataclass(frozen=True)
class Line:
    """What is to be drawn as one line.

    Attributes:
        name: As the legend shows it.
        points: Accuracy by eps, from 0.
        color: Number of a color and marker; None for a control, gray and dotted.
        dashed: Whether it is drawn dashed.
        shown: Whether it is there before the reader asks for it.
        thin: Whether it is drawn thin, beside the lines that matter most.
        ring: Accuracy that other attacks leave at the plot's mark, drawn as a ring.
    """

    name: str
    points: list[tuple[float, Share]]
    color: int | None
    dashed: bool = False
    shown: bool = True
    thin: bool = False
    ring: Share | None = None


@dataclass(frozen=True)
class Drawn:
    """A line in the plot's coordinates."""

    line: Line
    path: str
    band: str
    places: list[tuple[float, float]]
    marker: str
    ring: tuple[float, float] | None = None

    @property
    def style(self) -> str:
        """Its classes."""
        color = "control" if self.line.color is None else f"c{self.line.color % len(MARKERS)}"
        return f"{color}{' dashed' if self.line.dashed else ''}{' thin' if self.line.thin else ''}"


@dataclass(frozen=True)
class Column:
    """A strip of the plot that shows all lines at one eps under the pointer, in percent of the width."""

    eps: float
    left: float
    width: float
    guide: float
    on_left: bool
    shares: list[tuple[int, Share]]


@dataclass(frozen=True)
class Plot:
    """Everything that the template draws."""

    key: str
    lines: list[Drawn]
    columns: list[Column]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    chance: tuple[float, float]
    floor: tuple[float, float] | None
    mark: tuple[float, float] | None

    @property
    def ringed(self) -> bool:
        """Whether a line has a ring."""
        return any(drawn.ring for drawn in self.lines)

    @property
    def table(self) -> list[tuple[float, list[Share | None]]]:
        """All points: of each eps, of each line."""
        return [
            (column.eps, [dict(column.shares).get(number) for number in range(len(self.lines))])
            for column in self.columns
        ]


def plot(key: str, lines: list[Line], *, chance: float, floor: float | None, mark: float | None) -> Plot:
    """Lay a plot out.

    Args:
        key: Different for each plot of a page.
        lines: The lines, in the order of the legend.
        chance: Accuracy of guessing.
        floor: The eps below which 8 bits hold nothing, where it is known.
        mark: An eps to be marked, if any.
    """
    sizes = sorted({eps for line in lines for eps, _ in line.points})
    positive = [eps for eps in [*sizes, *([floor] if floor else []), *([mark] if mark else [])] if eps > 0]
    x = _scale(min(positive, default=0.1), max(positive, default=1.0))
    drawn = [_drawn(line, x, mark) for line in lines]
    return Plot(
        key,
        drawn,
        _columns(sizes, lines, x),
        [(x(0.0), "0"), *((x(size), f"{size:g}") for size in _ticks(positive))],
        [(_y(tick / 100), f"{tick} %") for tick in range(0, 101, 20)],
        (_y(chance), chance),
        (x(floor), floor) if floor else None,
        (x(mark), mark) if mark else None,
    )


def _scale(low: float, high: float) -> Callable[[float], float]:
    span = math.log(high / low) or 1.0

    def x(eps: float) -> float:
        return round(FIRST + (RIGHT - 12 - FIRST) * math.log(eps / low) / span, 1) if eps else float(ZERO)

    return x


def _y(share: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * share, 1)


def _ticks(sizes: list[float]) -> list[float]:
    """Round numbers within the range, few enough to be read."""
    low, high = min(sizes, default=0.1), max(sizes, default=1.0)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    leading = (1, 2, 5) if len(decades) <= 5 else (1,)
    ticks = (float(f"{digit}e{decade}") for decade in decades for digit in leading)
    # Half a percent, for 1/255 and its like are no round numbers.
    return [tick for tick in ticks if low * 0.995 <= tick <= high * 1.005]


def _drawn(line: Line, x: Callable[[float], float], mark: float | None) -> Drawn:
    places = [(x(eps), _y(share.value)) for eps, share in line.points]
    above = [f"{x(eps)},{_y(share.high)}" for eps, share in line.points]
    below = [f"{x(eps)},{_y(share.low)}" for eps, share in reversed(line.points)]
    path = "M" + "L".join(f"{across},{down}" for across, down in places)
    marker = MARKERS[line.color % len(MARKERS)] if line.color is not None else ""
    ring = (x(mark), _y(line.ring.value)) if line.ring and mark else None
    return Drawn(line, path, " ".join([*above, *below]), places, marker, ring)


def _columns(sizes: list[float], lines: list[Line], x: Callable[[float], float]) -> list[Column]:
    places = [x(eps) for eps in sizes]
    edges = [float(LEFT), *((one + other) / 2 for one, other in itertools.pairwise(places)), float(RIGHT)]
    columns = []
    for number, eps in enumerate(sizes):
        left, right = edges[number], edges[number + 1]
        at = [(place, share) for place, line in enumerate(lines) for size, share in line.points if size == eps]
        columns.append(
            Column(
                eps,
                round(left / WIDTH * 100, 3),
                round((right - left) / WIDTH * 100, 3),
                round((places[number] - left) / (right - left) * 100, 2),
                places[number] > WIDTH / 2,
                at,
            )
        )
    return columns
