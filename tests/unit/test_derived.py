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
from evasion.pipelines.derived import REQUIRED, Parameter, parameter_of
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
    assert parameter_of(soften, "folder") == Parameter("folder", str, REQUIRED, "Where the patterns are.")
    assert parameter_of(soften, "rounds") == Parameter("rounds", int, 2, "How often.")
    assert isinstance(parameter_of(soften, "rounds").default, int)
    assert parameter_of(soften, "strength", "soften_strength") == Parameter("soften_strength", float, 0.5, "How much.")
    assert parameter_of(soften, "careful") == Parameter("careful", bool, True, "Whether to take care.")


def test_a_pipeline_can_override_default_and_text():
    assert parameter_of(soften, "folder", default="/data").default == "/data"
    assert parameter_of(soften, "rounds", default=REQUIRED).default is REQUIRED
    assert parameter_of(soften, "rounds", text="Times.").text == "Times."


def test_a_parameter_of_few_values_has_them_as_choices():
    assert parameter_of(soften, "norm").choices == ("inf", "1", "2")
    assert parameter_of(soften, "norm", "soften_norm").choices == ("inf", "1", "2")
    assert parameter_of(soften, "folder").choices == ()


def test_a_derived_pipeline_has_its_parameters_and_passes_on_their_values():
    received = {}

    def wire(values):
        received.update(values)
        data = dsl.importer(artifact_uri="gs://b/x", artifact_class=dsl.Dataset).output
        soften(dataset=data, folder=values["place"], rounds=values["rounds"])

    declared = [parameter_of(soften, "rounds"), parameter_of(soften, "folder", "place"), parameter_of(soften, "norm")]
    pipeline = derived.pipeline("two_words", "Soften.\n\nAnd no more.", declared, wire)
    assert pipeline.name == pipeline.component_spec.name == "two-words"
    assert list(received) == ["place", "rounds", "norm"]  # those without a default come first
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


def test_a_step_of_several_datasets_passes_on_each_of_them(monkeypatch):
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
    """The source in the container is what kfp reads from the file that Python reports for the function."""
    variant = with_datasets(soften, count)
    assert with_datasets(soften, count) is variant
    (*_, source) = variant.component_spec.implementation.container.command
    names = [f"dataset_{number}" for number in range(2, count + 1)]
    assert re.findall(r"dataset_\d+(?=:Input|: Input)", source) == names
    assert source.count("@") == 0
    assert 'call("soften", locals())' in source.replace("'", '"')
    described = {name: declared.description for name, declared in variant.component_spec.inputs.items()}
    assert described["folder"] == soften.component_spec.inputs["folder"].description
    assert all(described[name] for name in names)
    parameters = inspect.signature(variant.python_func).parameters
    assert parameters["rounds"].default == 2
    assert parameters["folder"].default is inspect.Parameter.empty


def test_the_default_steps_are_those_with_a_place_in_that_order(monkeypatch):
    from evasion.components.pgd import component

    assert stages.default_steps(stages.attacks()) == ["fgm", "auto_attack"]
    monkeypatch.setattr(component, "PLACE_IN_DEFAULT_EVALUATION", 1, raising=False)
    assert stages.default_steps(stages.attacks()) == ["fgm", "pgd", "auto_attack"]  # at the same place by name
    monkeypatch.setattr(component, "PLACE_IN_DEFAULT_EVALUATION", 0.5)
    assert stages.default_steps(["pgd", "fgm"]) == ["pgd", "fgm"]
    assert stages.default_steps(["jpeg_compression"]) == ["jpeg_compression"]


def test_a_step_s_own_parameters_are_prefixed_with_its_name_in_an_evaluation():
    parameters_by_name = stages.evaluation_parameters("soften", soften)
    assert {own: parameter.name for own, parameter in parameters_by_name.items()} == {
        "folder": "soften_folder",
        "rounds": "soften_rounds",
        "strength": "soften_strength",
        "norm": "norm",
        "careful": "soften_careful",
    }
    assert parameters_by_name["rounds"].text == "For soften: how often."


@pytest.mark.parametrize("name", [*stages.attacks(), *stages.defenses()])
def test_names_of_parameters_in_an_evaluation(name):
    """A parameter is prefixed with the step's name, unless all steps share it or it is renamed."""
    parameters_by_name = stages.evaluation_parameters(name, (stages.attacks() | stages.defenses())[name])
    assert not stages.WIRED & set(parameters_by_name)
    for own, parameter in parameters_by_name.items():
        shared, renamed = own in stages.SHARED, stages.RENAMED.get((name, own))
        assert parameter.name == (own if shared else renamed or f"{name}_{own}")
        assert parameter.text


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
    ("attacks", "defenses", "message"),
    [
        ([], None, "attacks must name at least one of auto_attack, fgm, pgd. Received: none"),
        (["fgn"], None, "attacks must be among auto_attack, fgm, pgd. Received: fgn"),
        (["fgm", "fgm"], None, "attacks must not repeat a name. Received: fgm, fgm"),
        (["jpeg_compression"], None, "attacks must be among auto_attack, fgm, pgd. Received: jpeg_compression"),
        (
            None,
            ["fgm"],
            "defenses must be among gaussian_augmentation, jpeg_compression, spatial_smoothing. Received: fgm",
        ),
    ],
)
def test_an_evaluation_of_unknown_steps_is_refused(attacks, defenses, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        catalog.evaluation("registered", attacks, defenses)
