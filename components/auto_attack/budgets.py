"""How much work each member of the ensemble does, and which members there are."""

from dataclasses import dataclass, fields

from evasion.components.common import validate
from evasion.components.common.validate import ParameterError

APGD_CE, APGD_T, SQUARE = MEMBERS = ("apgd-ce", "apgd-t", "square")
"""The members in their order: each attacks only the images that stand after those before it."""

_USES = {
    "max_iter": (APGD_CE, APGD_T),
    "num_random_init": MEMBERS,
    "n_target_classes": (APGD_T,),
    "n_queries": (SQUARE,),
}


@dataclass(frozen=True)
class Budget:
    """The work of the ensemble on an image that stands to the end.

    Attributes:
        max_iter: Steps of each run of APGD.
        num_random_init: Runs of each member, for APGD-T of each target class, from different starts.
        n_target_classes: Classes that APGD-T aims at, the most likely ones first.
        n_queries: Candidates that a run of Square tries.
    """

    max_iter: int
    num_random_init: int
    n_target_classes: int
    n_queries: int


BUDGETS = {
    "standard": Budget(max_iter=100, num_random_init=1, n_target_classes=9, n_queries=5000),
    "light": Budget(max_iter=20, num_random_init=1, n_target_classes=3, n_queries=200),
}
"""`standard` is that of the paper (Croce and Hein 2020, arXiv:2003.01690, section 6); `light` suits a laptop."""


def chosen_members(text: str) -> tuple[str, ...]:
    """Return the members that a parameter `members` names, in the order of `MEMBERS`.

    Args:
        text: Names separated by commas.

    Raises:
        ParameterError: A name is unknown or repeated, or there is none.
    """
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(MEMBERS) or len(set(names)) < len(names):
        raise ParameterError(
            f"members must name one or more of {', '.join(MEMBERS)}, each once. Received: members={text!r}", "members"
        )
    return tuple(name for name in MEMBERS if name in names)


def check(budget: str, **given: int) -> None:
    """Validate the name of a budget and its numbers, of which 0 means that of the budget."""
    validate.one_of("budget", budget, BUDGETS)
    for name, number in given.items():
        validate.at_least(name, number, 0)


def resolved(budget: str, *, classes: int, **given: int) -> Budget:
    """Return a budget, with the numbers that are given in place of its own.

    Args:
        budget: A key of `BUDGETS`.
        classes: Number of classes of the model; APGD-T aims at no more than the others.
        given: Numbers by the names of `Budget`'s attributes; 0 means that of the budget.
    """
    numbers = {field.name: given[field.name] or getattr(BUDGETS[budget], field.name) for field in fields(Budget)}
    numbers["n_target_classes"] = min(numbers["n_target_classes"], classes - 1)
    return Budget(**numbers)


def described(members: tuple[str, ...], budget: Budget) -> str:
    """Return in words what the members do with an image that stands to the end."""

    def plural(number: int, one: str, many: str) -> str:
        return f"{number:,} {one if number == 1 else many}"

    steps = plural(budget.max_iter, "step", "steps")
    classes = plural(budget.n_target_classes, "class", "classes")
    queries = plural(budget.n_queries, "query", "queries")
    starts = f", {budget.num_random_init} starts" if budget.num_random_init > 1 else ""
    words = {APGD_CE: steps, APGD_T: f"{steps}, {classes}", SQUARE: queries}
    return ", ".join(f"{member} ({words[member]}{starts})" for member in members)


def stronger(members: tuple[str, ...], budget: str, *, classes: int, **given: int) -> str:
    """Return the options of an evaluation that make the attack as strong as `standard`; blank if it is.

    Args:
        members: The members that attack.
        budget: A key of `BUDGETS`.
        classes: Number of classes of the model.
        given: As in `resolved`.
    """
    nothing = dict.fromkeys(_USES, 0)
    standard, own, work = (
        resolved(name, classes=classes, **numbers)
        for name, numbers in (("standard", nothing), (budget, nothing), (budget, given))
    )
    lacking = [name for name in _used(members) if getattr(work, name) < getattr(standard, name)]
    options = []
    if any(getattr(own, name) < getattr(standard, name) for name in lacking):
        options.append("--auto-attack-budget standard")
    options += [f"--auto-attack-{name.replace('_', '-')} 0" for name in lacking if given[name]]
    if members != MEMBERS:
        options.append(f"--auto-attack-members {','.join(MEMBERS)}")
    return " ".join(options)


def recorded(members: tuple[str, ...], budget: Budget) -> dict[str, int | str]:
    """Return the members and those numbers of the budget that they use, in the form of the provenance."""
    return {"members": ",".join(members), **{name: getattr(budget, name) for name in _used(members)}}


def _used(members: tuple[str, ...]) -> list[str]:
    """Return those numbers of a budget that the members use, by name."""
    return [name for name, users in _USES.items() if any(member in members for member in users)]
