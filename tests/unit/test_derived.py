"""Pipelines derived from steps: their parameters, their choices, and steps that take several datasets."""

import inspect
import re

import pytest
from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from evasion.components import body
from evasion.components.jpeg_compression.component import jpeg_compression
from evasion.components.step import step
from evasion.pipelines import catalog, derived, stages
from evasion.pipelines.derived import REQUIRED, Parameter, of
from evasion.pipelines.evaluation import SOURCES, parameters
from evasion.pipelines.inputs import with_datasets


@step
def soften(
    dataset: Input[Dataset],
    defended: Output[Dataset],
    metrics: Output[Metrics],
    folder: str,
    rounds: int = 2,
    strength: float = 0.5,
    norm: str = "inf",
    careful: bool = True,
) -> None:
    """Soften every image.

    Args:
        dataset: The images.
        defended: The images after it.
        metrics: Distances.
        folder: Where the
            patterns are.
        rounds: How often.
        strength: How much.
        norm: Of what.
        careful: Whether to take care.
    """
    from evasion.components.body import call

    metrics.metadata.update(call("soften", locals()))


def test_a_parameter_is_that_of_its_step():
    assert of(soften, "folder") == Parameter("folder", str, REQUIRED, "Where the patterns are.")
    assert of(soften, "rounds") == Parameter("rounds", int, 2, "How often.")
    assert isinstance(of(soften, "rounds").default, int)
    assert of(soften, "strength", "soften_strength") == Parameter("soften_strength", float, 0.5, "How much.")
    assert of(soften, "careful") == Parameter("careful", bool, True, "Whether to take care.")


def test_a_pipeline_may_say_it_otherwise():
    assert of(soften, "folder", default="/data").default == "/data"
    assert of(soften, "rounds", default=REQUIRED).default is REQUIRED
    assert of(soften, "rounds", text="Times.").text == "Times."


def test_a_parameter_of_few_values_has_them_as_choices():
    assert of(soften, "norm").choices == ("inf", "1", "2")
    assert of(soften, "norm", "soften_norm").choices == ("inf", "1", "2")
    assert of(soften, "folder").choices == ()


def test_a_derived_pipeline_has_its_parameters_and_hands_their_values_on():
    given = {}

    def wire(values):
        given.update(values)
        data = dsl.importer(artifact_uri="gs://b/x", artifact_class=dsl.Dataset).output
        soften(dataset=data, folder=values["place"], rounds=values["rounds"])

    asked = [of(soften, "rounds"), of(soften, "folder", "place"), of(soften, "norm")]
    pipeline = derived.pipeline("two_words", "Soften.\n\nAnd no more.", asked, wire)
    assert pipeline.name == pipeline.component_spec.name == "two-words"
    assert list(given) == ["place", "rounds", "norm"]  # those without a default come first
    spec = pipeline.pipeline_spec
    declared = spec.root.input_definitions.parameters
    assert declared["place"].description == "Where the patterns are."
    assert not declared["place"].is_optional
    assert declared["rounds"].default_value.number_value == 2
    assert [one.string_value for one in declared["norm"].literals] == ["inf", "1", "2"]
    assert not declared["place"].literals
    assert spec.pipeline_info.description == "Soften.\nAnd no more."
    task = spec.root.dag.tasks["soften"].inputs.parameters
    assert {name: task[name].component_input_parameter for name in task} == {"folder": "place", "rounds": "rounds"}


def test_a_step_of_several_datasets_hands_each_of_them_on(monkeypatch):
    received = {}

    def call(stage, arguments):
        received.update(arguments, stage=stage)
        return {"images": 3}

    monkeypatch.setattr(body, "call", call)
    datasets = {name: Dataset(name=name, uri=f"/{name}") for name in ("dataset", "dataset_2", "dataset_3")}
    metrics = Metrics(name="metrics")
    with_datasets(jpeg_compression, 4).python_func(**datasets, defended=Dataset(uri="/out"), metrics=metrics)
    assert received["stage"] == "jpeg_compression"
    assert {name: received[name] for name in datasets} == datasets
    assert received["dataset_4"] is None
    assert received["quality"] == 50
    assert metrics.metadata == {"images": 3}


@pytest.mark.parametrize("count", [2, 3])
def test_what_kubeflow_runs_is_the_step_of_so_many_datasets(count):
    """The text in the container is what kfp reads where Python says that the function stands."""
    made = with_datasets(soften, count)
    assert with_datasets(soften, count) is made
    (*_, source) = made.component_spec.implementation.container.command
    names = [f"dataset_{number}" for number in range(2, count + 1)]
    assert re.findall(r"dataset_\d+(?=:Input|: Input)", source) == names
    assert source.count("@") == 0
    assert 'call("soften", locals())' in source.replace("'", '"')
    described = {name: declared.description for name, declared in made.component_spec.inputs.items()}
    assert described["folder"] == soften.component_spec.inputs["folder"].description
    assert all(described[name] for name in names)
    parameters = inspect.signature(made.python_func).parameters
    assert parameters["rounds"].default == 2
    assert parameters["folder"].default is inspect.Parameter.empty


def test_the_usual_steps_are_those_with_a_place_in_its_order(monkeypatch):
    from evasion.components.pgd import component

    assert stages.usual(stages.attacks()) == ["fgm"]
    monkeypatch.setattr(component, "PLACE_IN_DEFAULT_EVALUATION", 1, raising=False)
    assert stages.usual(stages.attacks()) == ["fgm", "pgd"]  # of one place by name
    monkeypatch.setattr(component, "PLACE_IN_DEFAULT_EVALUATION", 0.5)
    assert stages.usual(["pgd", "fgm"]) == ["pgd", "fgm"]
    assert stages.usual(["jpeg_compression"]) == ["jpeg_compression"]


def test_a_step_s_own_parameters_bear_its_name_in_an_evaluation():
    found = stages.in_evaluation("soften", soften)
    assert {name: known.name for name, known in found.items()} == {
        "folder": "soften_folder",
        "rounds": "soften_rounds",
        "strength": "soften_strength",
        "norm": "norm",
        "careful": "soften_careful",
    }
    assert found["rounds"].text == "Of soften: how often."


@pytest.mark.parametrize("name", [*stages.attacks(), *stages.defenses()])
def test_what_an_evaluation_calls_a_parameter_is_plain(name):
    """Its own name before it, unless all steps share it or the original has it without."""
    found = stages.in_evaluation(name, (stages.attacks() | stages.defenses())[name])
    assert not stages.WIRED & set(found)
    for parameter, known in found.items():
        shared, renamed = parameter in stages.SHARED, stages.RENAMED.get((name, parameter))
        assert known.name == (parameter if shared else renamed or f"{name}_{parameter}")
        assert known.text


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_an_evaluation_has_the_parameters_of_its_steps_and_no_others(source, sharded):
    everything = list(stages.attacks()), list(stages.defenses())
    names = [one.name for one in parameters(source, *everything, sharded=sharded)]
    assert len(set(names)) == len(names)
    assert ("shards" in names) == sharded
    pipeline = catalog.evaluation(source, *everything, sharded=sharded)
    assert set(pipeline.component_spec.inputs) == set(names)
    few = set(catalog.evaluation(source, ["fgm"], []).component_spec.inputs)
    assert {"eps", "minimal", "eps_values"} <= few
    assert not any(name.startswith(("pgd_attack_", *stages.defenses())) for name in few)


@pytest.mark.parametrize(
    ("attacks", "defenses", "said"),
    [
        ([], None, "attacks must name one of fgm, pgd at least. Received: none"),
        (["fgn"], None, "attacks must be of fgm, pgd. Received: fgn"),
        (["fgm", "fgm"], None, "attacks must name each once. Received: fgm, fgm"),
        (["jpeg_compression"], None, "attacks must be of fgm, pgd. Received: jpeg_compression"),
        (
            None,
            ["fgm"],
            "defenses must be of gaussian_augmentation, jpeg_compression, spatial_smoothing. Received: fgm",
        ),
    ],
)
def test_an_evaluation_of_steps_that_there_are_not_is_refused(attacks, defenses, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        catalog.evaluation("registered", attacks, defenses)
