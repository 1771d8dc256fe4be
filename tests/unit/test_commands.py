"""Which pipeline `evasion run evaluation` asks for, with which values, and what it refuses."""

import pytest
from click.testing import CliRunner

from evasion.pipelines import stages
from evasion.pipelines.cli import commands, main
from evasion.pipelines.cli import run as run_command


@pytest.fixture
def evaluation(monkeypatch, tmp_path):
    """Call the command; return what it would run and with which values, or what it says."""
    (tmp_path / "images" / "0").mkdir(parents=True)

    def call(*options, run=False):
        asked = []
        with monkeypatch.context() as patch:
            if not run:
                patch.setattr(
                    run_command,
                    "run_pipeline",
                    lambda pipeline, arguments, *_, **__: asked.append((pipeline, arguments)),
                )
            result = CliRunner().invoke(
                main.main,
                ["run", "evaluation", "--data-dir-test", str(tmp_path / "images"), "--output", str(tmp_path / "runs")]
                + [str(option) for option in options],
            )
        assert not (tmp_path / "runs").exists()
        if asked:
            assert result.exit_code == 0
            return asked[0]
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


def test_what_is_not_given_is_left_to_the_pipeline(evaluation):
    """One source of the model has a default where another has none."""
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
    usual, _ = evaluation(*MODEL)
    assert {"fgm", *stages.defenses()} <= set(functions(usual))
    assert "pgd" not in functions(usual)
    chosen, arguments = evaluation(
        *MODEL, "--attacks", "pgd, fgm", "--defenses", "jpeg-compression", "--pgd-attack-max-iter", "3"
    )
    assert {"pgd", "fgm", "jpeg_compression"} <= set(functions(chosen))
    assert not {"spatial_smoothing", "gaussian_augmentation"} & set(functions(chosen))
    assert arguments["pgd_attack_max_iter"] == 3
    bare, _ = evaluation(*MODEL, "--defenses", "")
    assert not set(stages.defenses()) & set(functions(bare))


def test_shards_are_a_loop_and_a_parameter(evaluation):
    plain, arguments = evaluation(*MODEL, "--shards", 1)
    assert "shards" not in arguments
    assert "for_loop" not in functions(plain)
    dealt, arguments = evaluation(*MODEL, "--shards", 3)
    assert arguments["shards"] == 3
    assert "for_loop" in functions(dealt)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            (*MODEL, "--epochs", "3"),
            "epochs must be left out: of no use to a registered model with these attacks and defenses. "
            "Received: epochs=3.0",
        ),
        ((*MODEL, "--data-dir-train", "x"), "data_dir_train must be left out: of no use to a registered model"),
        (("--epochs", "3", "--optimizer", "sgd"), "Received: epochs=3.0, optimizer='sgd'"),
        ((*MODEL, "--pgd-attack-max-iter", "3"), "pgd_attack_max_iter must be left out"),
        (
            (*MODEL, "--defenses", "", "--jpeg-compression-quality", "50"),  # its default, yet asked for
            "jpeg_compression_quality must be left out",
        ),
        (("--data-dir-train", "x", "--model-architecture", "le_net", "--attacks", "pgd", "--minimal", "1"), "minimal "),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(evaluation, options, said):
    assert said in evaluation(*options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--attacks", ""), "attacks must name one of fgm, pgd at least. Received: none. Set --attacks."),
        (("--attacks", "fgm,fgm"), "attacks must name each once. Received: fgm, fgm. Set --attacks."),
        (("--defenses", "squeezing"), "Received: squeezing. Set --defenses."),
    ],
)
def test_steps_that_there_are_not_are_refused(evaluation, options, said):
    assert evaluation(*options).endswith(said)


def test_a_registered_model_needs_its_architecture(evaluation):
    assert evaluation("--model", "m", run=True) == "model_architecture must be given. Set --model-architecture."


@pytest.mark.parametrize("shards", [0, -1])
def test_shards_must_be_a_positive_number(evaluation, shards):
    said = evaluation(*MODEL, "--shards", shards, run=True)
    assert said.endswith(f"Received: shards={shards}. Set --shards.")


def test_a_command_knows_the_parameters_of_all_its_pipelines():
    known = {one.name: one for one in commands.command("evaluation").parameters}
    assert {"model", "data_dir_train", "weights", "epochs", "pgd_eps", "pgd_attack_eps_step", "shards"} <= set(known)
    assert known["model_architecture"].default is None  # one of several, or needed
    assert known["eps"].default == 0.3
    assert "data_dir_test" in {name for name, one in known.items() if one.default is commands.REQUIRED}


@pytest.mark.parametrize("name", ["evaluation_registered", "evaluation_trained", "fgm", "train"])
def test_every_pipeline_has_a_command_of_its_own_name(name):
    command = commands.command(name)
    assert command.name == name
    assert command.summary
    values = {one.name: one.default for one in command.parameters}
    pipeline, arguments = command.choose(values)
    assert arguments == values
    assert set(values) == set(pipeline.component_spec.inputs)


def test_there_is_no_command_of_another_name():
    assert commands.command("fgm_evaluation") is None
    assert "evaluation_registered" not in commands.names()
    assert commands.names()[-1] == "evaluation"
