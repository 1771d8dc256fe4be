"""Every numeric parameter of every step has an upper bound: a slip of the hand ends at once, not after days."""

import importlib
import json

import pytest

from evasion.components.common import validate
from evasion.components.common.data import header
from evasion.components.common.defenses import known
from evasion.pipelines import derived, stages
from evasion.pipelines.derived import parameter_of

REQUIRED = {"model_architecture": "le_net", "data_dir": "gs://bucket/data", "pipeline": "train"}
# Without it, the parameters of PGD training are not looked at.
ON = {"apply_defense": True}
HUGE = {int: (10**12, 10**400), float: (1e308, 10**400, float("inf"), float("nan"))}


def parameters(step):
    """The parameters of a step, by name."""
    component = stages.steps()[step]
    return {name: parameter_of(component, name) for name in stages.parameter_names(component)}


def check(step, **changed):
    """Check the defaults of a step with some values changed."""
    values = {name: parameter.default for name, parameter in parameters(step).items()}
    values |= {name: REQUIRED.get(name, "") for name, value in values.items() if value in ("", derived.REQUIRED)}
    values |= {name: value for name, value in ON.items() if name in values}
    importlib.import_module(f"evasion.components.{step}.task").check(**values | changed)


NUMERIC = {step: [each for each in parameters(step).values() if each.type in HUGE] for step in stages.steps()}


@pytest.mark.parametrize("step", [step for step, numeric in NUMERIC.items() if numeric])
def test_a_huge_number_is_refused_by_name(step):
    check(step)
    for parameter in NUMERIC[step]:
        for value in HUGE[parameter.type]:
            with pytest.raises(validate.ParameterError, match=f"^{parameter.name} must be ") as error:
                check(step, **{parameter.name: value})
            assert parameter.name in error.value.parameters


@pytest.mark.parametrize(
    ("step", "norm"), [("fgm", "1"), ("fgm", "2"), ("pgd", "1"), ("auto_attack", "2"), ("security_curve", "1")]
)
def test_an_attack_reaches_as_far_as_two_images_can_differ(step, norm):
    most = {"1": 3 * header.MAX_SIDE**2, "2": (3 * header.MAX_SIDE**2) ** 0.5}[norm]
    assert most <= validate.LARGEST_EPS[norm] < most + 1
    check(step, norm=norm, eps=most)
    with pytest.raises(validate.ParameterError, match=r"eps must be in \(0, [0-9,]+\]"):
        check(step, norm=norm, eps=1e308)


def test_a_security_curve_has_a_bounded_number_of_points():
    check("security_curve", eps_values=",".join(["0.1"] * 1_000))
    with pytest.raises(validate.ParameterError, match="at most 1,000 positive numbers") as error:
        check("security_curve", eps_values=",".join(["0.1"] * 100_000))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("value", [10**400, "1e308", 1e308])
def test_settings_of_a_defense_are_bounded(value):
    with pytest.raises(validate.ParameterError, match="window_size must be"):
        known.defenses_of(json.dumps({"spatial_smoothing": {"window_size": value}}))
