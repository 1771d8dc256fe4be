"""The step `report`."""

from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from evasion.components.step import step


@step
def report(
    html: Output[HTML],
    summary: Output[Artifact],
    metrics: Output[Metrics],
    evaluation: Input[Artifact] = None,
    curve: Input[Artifact] = None,
    evaluation_shards: Input[list[Artifact]] = None,
    curve_shards: Input[list[Artifact]] = None,
    clean_accuracy_floor: float = 0.5,
) -> None:
    """Draw evaluations of a model, clean, attacked and defended, as one page and one JSON file.

    Which evaluation is what is read from where its data comes from, so a new attack or defense changes nothing here.

    Args:
        html: The report, one file that needs no network.
        summary: The same numbers as JSON.
        metrics: The main numbers.
        evaluation: What `infer` measured.
        curve: What `security_curve` drew of the same model and images, or nothing.
        evaluation_shards: In place of `evaluation` that of each shard, as `dsl.Collected` gathers them.
        curve_shards: In place of `curve` that of each shard, likewise.
        clean_accuracy_floor: The report warns if the model is right less often than this on clean images, in [0, 1].
    """
    from evasion.components.body import call

    metrics.metadata.update(call("report", locals()))
