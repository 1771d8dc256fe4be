"""The steps that a pipeline will run with its arguments, and the validation of the arguments before any starts."""

import pytest
from kfp import dsl

from evasion.components.fgm.component import fgm
from evasion.components.jpeg_compression.component import jpeg_compression
from evasion.components.load_dataset.component import load_dataset
from evasion.components.load_model.component import load_model
from evasion.components.step import step
from evasion.components.train.component import train
from evasion.pipelines import catalog, plan
from evasion.pipelines.plan import BadArgumentsError, Problem


@step
def measure() -> float:
    return 1.0


@dsl.pipeline
def attack(data_dir: str, model: str = "m", eps: float = 0.3, images_per_batch: int = 32, norm: str = "inf"):
    loaded = load_dataset(data_dir=data_dir, model_architecture="le_net")
    target = load_model(name=model, model_architecture="le_net")
    attacked = fgm(
        dataset=loaded.outputs["dataset"],
        model=target.outputs["model"],
        eps=eps,
        batch_size=images_per_batch,
        norm=norm,
    )
    attacked.set_display_name("the attack")


@dsl.pipeline
def branches(data_dir: str, quality: int = 75, training: bool = True, epochs: float = 1.0, seed: int = 1):
    loaded = load_dataset(data_dir=data_dir, model_architecture="le_net", split="training")
    with dsl.If(training == True):  # noqa: E712 - a condition of the pipeline
        train(dataset=loaded.outputs["dataset"], model_architecture="le_net", epochs=epochs, seed=seed)
    with dsl.Else():
        load_model(name="", model_architecture="le_net")
    measured = measure()
    with dsl.If(measured.output > 0.5):
        jpeg_compression(dataset=loaded.outputs["dataset"], quality=quality)


@dsl.pipeline
def strength_from_a_step(data_dir: str, norm: str = "inf"):
    loaded = load_dataset(data_dir=data_dir, model_architecture="le_net")
    target = load_model(name="m", model_architecture="le_net")
    fgm(dataset=loaded.outputs["dataset"], model=target.outputs["model"], eps=measure().output, norm=norm)


@pytest.fixture
def data_dir(tmp_path):
    (tmp_path / "0").mkdir()
    return str(tmp_path)


def planned(pipeline, **arguments):
    return plan.planned_steps(pipeline, plan.complete(pipeline, arguments))


def problems(pipeline, **arguments) -> list[Problem]:
    try:
        plan.check(planned(pipeline, **arguments))
    except BadArgumentsError as error:
        return list(error.problems)
    return []


def test_steps_have_the_arguments_that_will_reach_them(data_dir):
    steps = {step.function: step for step in planned(attack, data_dir=data_dir, eps=0.1)}
    assert steps["fgm"].name == "the attack"
    assert steps["fgm"].arguments == {"eps": 0.1, "batch_size": 32, "norm": "inf"}
    assert isinstance(steps["fgm"].arguments["batch_size"], int)
    assert steps["fgm"].origin == {"eps": "eps", "batch_size": "images_per_batch", "norm": "norm"}
    assert steps["load_dataset"].arguments == {"data_dir": data_dir, "model_architecture": "le_net"}


def test_tasks_come_in_a_fixed_order_after_those_that_they_wait_for():
    waits = {
        "report": ["infer", "security-curve"],
        "security-curve": ["load-dataset", "load-model"],
        "infer": ["fgm-10", "fgm-2", "load-dataset"],
        "fgm-10": ["load-dataset", "load-model"],
        "fgm-2": ["load-dataset", "load-model"],
        "fgm": ["load-dataset", "load-model"],
        "load-model": ["a task of another graph"],
        "load-dataset-2": [],
        "load-dataset": [],
        "compare": [],
    }
    order = ["load-dataset", "load-dataset-2", "load-model", "compare", "fgm", "fgm-2", "fgm-10", "infer"]
    assert plan.in_order(waits) == [*order, "security-curve", "report"]
    assert plan.in_order(dict(reversed(waits.items()))) == [*order, "security-curve", "report"]
    assert plan.in_order({}) == []


def test_loading_steps_come_before_steps_that_take_time(data_dir):
    evaluation = catalog.pipelines()["evaluation_trained"]
    arguments = {"data_dir_test": data_dir, "data_dir_train": data_dir, "model_architecture": "le_net"}
    tasks = [step.task for step in planned(evaluation, **arguments)]
    defenses = ["gaussian-augmentation", "jpeg-compression", "spatial-smoothing"]
    assert tasks[:3] == ["load-dataset", "load-dataset-2", "train"]
    between = [task for task in tasks[3:] if task not in ("security-curve", "infer")]
    assert between == ["auto-attack", "fgm", *defenses, "report"]


def test_good_arguments_have_no_problem(data_dir):
    assert problems(attack, data_dir=data_dir) == []
    assert problems(branches, data_dir=data_dir) == []


@pytest.mark.parametrize(
    ("arguments", "parameters", "message"),
    [
        ({"eps": -0.3}, ("eps",), "the attack: eps must be in (0, 1]. Received: eps=-0.3"),
        ({"eps": float("nan")}, ("eps",), "Received: eps=nan"),
        ({"images_per_batch": 0}, ("images_per_batch",), "batch_size must be a positive integer"),
        ({"norm": "3"}, ("norm",), "norm must be one of inf, 1, 2. Received: norm='3'"),
        ({"model": " "}, ("model",), "load_model: model must be given"),
        ({"data_dir": "/nowhere"}, ("data_dir",), "Received: data_dir='/nowhere'"),
    ],
)
def test_an_invalid_argument_is_reported_with_its_parameter(data_dir, arguments, parameters, message):
    (problem,) = problems(attack, **{"data_dir": data_dir, **arguments})
    assert message in problem.message
    assert problem.parameters == parameters


def test_all_invalid_arguments_are_reported_at_once(data_dir):
    assert len(problems(attack, data_dir=data_dir, eps=2.0, model="")) == 2


def test_a_branch_known_not_to_run_is_neither_counted_nor_checked(data_dir):
    trained = planned(branches, data_dir=data_dir, training=True)
    assert [step.function for step in trained if step.function in ("train", "load_model")] == ["train"]
    assert problems(branches, data_dir=data_dir, training=True) == []
    loaded = planned(branches, data_dir=data_dir, training=False, epochs=-1.0)
    assert [step.function for step in loaded if step.function in ("train", "load_model")] == ["load_model"]
    (problem,) = problems(branches, data_dir=data_dir, training=False, epochs=-1.0)
    assert "model must be given" in problem.message


def test_a_branch_that_depends_on_a_step_is_counted_and_checked(data_dir):
    (problem,) = problems(branches, data_dir=data_dir, quality=0)
    assert "Received: quality=0" in problem.message
    assert problem.parameters == ("quality",)


def test_a_value_from_another_step_is_not_guessed(data_dir):
    (step,) = [step for step in planned(strength_from_a_step, data_dir=data_dir) if step.function == "fgm"]
    assert "eps" not in step.arguments
    assert step.later == {"eps"}
    # The check needs eps, so it waits until the step runs.
    assert problems(strength_from_a_step, data_dir=data_dir, norm="9") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "data_dir must be given"),
        (
            {"data_dir": "x", "epsilon": 1.0},
            "epsilon is not a parameter of attack. Its parameters: data_dir, model, eps",
        ),
        ({"data_dir": 3}, "data_dir must be a string. Received: data_dir=3"),
        ({"data_dir": "x", "eps": "abc"}, "eps must be a number. Received: eps='abc'"),
        ({"data_dir": "x", "eps": True}, "eps must be a number. Received: eps=True"),
        ({"data_dir": "x", "images_per_batch": 1.5}, "images_per_batch must be an integer. Received"),
    ],
)
def test_arguments_that_do_not_fit_the_signature(arguments, message):
    with pytest.raises(BadArgumentsError, match=message.replace("(", r"\(")):
        plan.complete(attack, arguments)


def test_an_integer_is_a_number():
    assert plan.complete(attack, {"data_dir": "x", "eps": 1})["eps"] == 1.0
