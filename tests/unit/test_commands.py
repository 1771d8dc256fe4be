"""The pipeline and the values that `evasion run evaluation` selects, and the options that it refuses."""

import pytest
from click.testing import CliRunner

from evasion.pipelines import stages
from evasion.pipelines.cli import commands, main
from evasion.pipelines.cli import run as run_command


@pytest.fixture
def evaluation(monkeypatch, tmp_path):
    """Call the command; return the pipeline and the values that it would run, or its error message."""
    (tmp_path / "images" / "0").mkdir(parents=True)

    def call(*options, run=False):
        selected = []
        with monkeypatch.context() as patch:
            if not run:
                patch.setattr(
                    run_command,
                    "run_pipeline",
                    lambda pipeline, arguments, *_, **__: selected.append((pipeline, arguments)),
                )
            result = CliRunner().invoke(
                main.main,
                ["run", "evaluation", "--data-dir-test", str(tmp_path / "images"), "--output", str(tmp_path / "runs")]
                + [str(option) for option in options],
            )
        assert not (tmp_path / "runs").exists()
        if selected:
            assert result.exit_code == 0
            return selected[0]
        assert result.exit_code == 2
        return result.stderr.removeprefix("Error: ").rstrip()

    return call


NEEDED = {"data_dir_test"}
MODEL = ("--model", "m", "--model-architecture", "le_net")


def functions(pipeline):
    """The step of each task of a pipeline, those in its loop too."""
    spec = pipeline.pipeline_spec
    graphs = [spec.root.dag, *(one.dag for one in spec.components.values())]
    tasks = [task.component_ref.name for graph in graphs for task in graph.tasks.values()]
    return sorted(name.removeprefix("comp-").rstrip("-0123456789").replace("-", "_") for name in tasks)


@pytest.mark.parametrize(
    ("options", "name", "source"),
    [
        ((), "evaluation-pretrained", "init_model"),
        (("--model-architecture", "vgg16"), "evaluation-pretrained", "init_model"),
        (MODEL, "evaluation-registered", "load_model"),
        (("--data-dir-train", "x", "--model-architecture", "le_net"), "evaluation-trained", "train"),
        (("--model", "", "--data-dir-train", ""), "evaluation-pretrained", "init_model"),
        (("--data-dir-train", "", *MODEL), "evaluation-registered", "load_model"),
    ],
)
def test_the_options_choose_where_the_model_comes_from(evaluation, options, name, source):
    pipeline, arguments = evaluation(*options)
    assert pipeline.component_spec.name == name
    assert source in functions(pipeline)
    assert set(arguments) <= set(pipeline.component_spec.inputs)


def test_omitted_parameters_are_left_to_the_pipeline(evaluation):
    """One source of the model may have a default where another has none."""
    for options in ((), ("--data-dir-train", "x", "--model-architecture", "le_net"), MODEL):
        pipeline, arguments = evaluation(*options)
        inputs = pipeline.component_spec.inputs
        given = {word.removeprefix("--").replace("-", "_") for word in options if word.startswith("--")}
        assert {name for name, declared in inputs.items() if not declared.optional} <= given | NEEDED
        assert all(value == inputs[name].default for name, value in arguments.items() if name not in given | NEEDED)
    pipeline, arguments = evaluation()
    assert "model_architecture" not in arguments
    assert pipeline.component_spec.inputs["model_architecture"].default == "resnet50"


def test_attacks_and_defenses_are_those_named(evaluation):
    default, _ = evaluation(*MODEL)
    assert {"fgm", "auto_attack", *stages.defenses()} <= set(functions(default))
    assert "pgd" not in functions(default)
    selected, arguments = evaluation(
        *MODEL, "--attacks", "pgd, fgm", "--defenses", "jpeg-compression", "--pgd-attack-max-iter", "3"
    )
    assert {"pgd", "fgm", "jpeg_compression"} <= set(functions(selected))
    assert not {"spatial_smoothing", "gaussian_augmentation"} & set(functions(selected))
    assert arguments["pgd_attack_max_iter"] == 3
    bare, _ = evaluation(*MODEL, "--defenses", "")
    assert not set(stages.defenses()) & set(functions(bare))


def test_shards_are_a_loop_and_a_parameter(evaluation):
    plain, arguments = evaluation(*MODEL, "--shards", 1)
    assert "shards" not in arguments
    assert "for_loop" not in functions(plain)
    sharded, arguments = evaluation(*MODEL, "--shards", 3)
    assert arguments["shards"] == 3
    assert "for_loop" in functions(sharded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (*MODEL, "--epochs", "3"),
            "epochs must be omitted: not used for an existing model with these attacks and defenses. "
            "Received: epochs=3.0",
        ),
        ((*MODEL, "--data-dir-train", "x"), "data_dir_train must be omitted: not used for an existing model"),
        (("--epochs", "3", "--optimizer", "sgd"), "Received: epochs=3.0, optimizer='sgd'"),
        ((*MODEL, "--pgd-attack-max-iter", "3"), "pgd_attack_max_iter must be omitted"),
        (
            (*MODEL, "--defenses", "", "--jpeg-compression-quality", "50"),  # its default, yet asked for
            "jpeg_compression_quality must be omitted",
        ),
        (("--data-dir-train", "x", "--model-architecture", "le_net", "--attacks", "pgd", "--minimal", "1"), "minimal "),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(evaluation, options, message):
    assert message in evaluation(*options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--attacks", ""), "attacks must name at least one of auto_attack, fgm, pgd. Received: none. Set --attacks."),
        (("--attacks", "fgm,fgm"), "attacks must not repeat a name. Received: fgm, fgm. Set --attacks."),
        (("--defenses", "squeezing"), "Received: squeezing. Set --defenses."),
    ],
)
def test_unknown_steps_are_refused(evaluation, options, message):
    assert evaluation(*options).endswith(message)


def test_a_choice_is_taken_in_any_case(evaluation):
    _, values = evaluation("--model-architecture", "MobileNetV2", "--interpolation", "Area", "--model", "")
    assert (values["model_architecture"], values["interpolation"]) == ("mobilenetv2", "area")


def test_a_model_needs_no_architecture(evaluation):
    pipeline, values = evaluation("--model", "m")
    assert (pipeline.name, values.get("model_architecture", "")) == ("evaluation-registered", "")


@pytest.mark.parametrize("shards", [0, -1])
def test_shards_must_be_a_positive_number(evaluation, shards):
    message = evaluation(*MODEL, "--shards", shards, run=True)
    assert message.endswith(f"Received: shards={shards}. Set --shards.")


def test_a_command_knows_the_parameters_of_all_its_pipelines():
    parameters = {parameter.name: parameter for parameter in commands.command("evaluation").parameters}
    assert {"model", "data_dir_train", "weights", "epochs", "pgd_eps", "pgd_attack_eps_step", "shards"} <= set(
        parameters
    )
    assert parameters["model_architecture"].default is None  # required or not, depending on the pipeline
    assert parameters["eps"].default == 0.3
    assert parameters["data_dir_test"].default is commands.REQUIRED


@pytest.mark.parametrize("name", ["evaluation_registered", "evaluation_trained", "fgm", "train"])
def test_every_pipeline_has_a_command_of_its_own_name(name):
    command = commands.command(name)
    assert command.name == name
    assert command.summary
    values = {one.name: one.default for one in command.parameters}
    pipeline, arguments = command.select(values)
    assert arguments == values
    assert set(values) == set(pipeline.component_spec.inputs)


def test_other_names_have_no_command():
    assert commands.command("fgm_evaluation") is None
    assert "evaluation_registered" not in commands.names()
    assert commands.names()[-1] == "evaluation"
