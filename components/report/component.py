"""The step `report`."""

from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from evasion.components.step import step


@step
def report(
    html: Output[HTML],
    summary: Output[Artifact],
    metrics: Output[Metrics],
    evaluation_1: Input[list[Artifact]] = None,
    evaluation_2: Input[list[Artifact]] = None,
    evaluation_3: Input[list[Artifact]] = None,
    evaluation_4: Input[list[Artifact]] = None,
    evaluation_5: Input[list[Artifact]] = None,
    evaluation_6: Input[list[Artifact]] = None,
    evaluation_7: Input[list[Artifact]] = None,
    evaluation_8: Input[list[Artifact]] = None,
    evaluation_9: Input[list[Artifact]] = None,
    evaluation_10: Input[list[Artifact]] = None,
    evaluation_11: Input[list[Artifact]] = None,
    evaluation_12: Input[list[Artifact]] = None,
    evaluation_13: Input[list[Artifact]] = None,
    evaluation_14: Input[list[Artifact]] = None,
    evaluation_15: Input[list[Artifact]] = None,
    evaluation_16: Input[list[Artifact]] = None,
    evaluation_17: Input[list[Artifact]] = None,
    evaluation_18: Input[list[Artifact]] = None,
    evaluation_19: Input[list[Artifact]] = None,
    evaluation_20: Input[list[Artifact]] = None,
    evaluation_21: Input[list[Artifact]] = None,
    evaluation_22: Input[list[Artifact]] = None,
    evaluation_23: Input[list[Artifact]] = None,
    evaluation_24: Input[list[Artifact]] = None,
    evaluation_25: Input[list[Artifact]] = None,
    evaluation_26: Input[list[Artifact]] = None,
    evaluation_27: Input[list[Artifact]] = None,
    evaluation_28: Input[list[Artifact]] = None,
    evaluation_29: Input[list[Artifact]] = None,
    evaluation_30: Input[list[Artifact]] = None,
    evaluation_31: Input[list[Artifact]] = None,
    evaluation_32: Input[list[Artifact]] = None,
    curve: Input[list[Artifact]] = None,
    clean_accuracy_floor: float = 0.5,
) -> None:
    """Draw evaluations of a model, clean, attacked and defended, as one page and one JSON file.

    Which evaluation is what is read from where its data comes from, so a new attack or defense only takes the next
    free input. Each is a list, of what `dsl.Collected` gathers of the shards in a `dsl.ParallelFor`, if only of one;
    they are numbered because Kubeflow gathers in a list what one step makes, not several.

    Args:
        html: The report, one file that needs no network.
        summary: The same numbers as JSON.
        metrics: The main numbers.
        evaluation_1: An evaluation by `infer`, of each shard, or nothing.
        evaluation_2: An evaluation by `infer`, of each shard, or nothing.
        evaluation_3: An evaluation by `infer`, of each shard, or nothing.
        evaluation_4: An evaluation by `infer`, of each shard, or nothing.
        evaluation_5: An evaluation by `infer`, of each shard, or nothing.
        evaluation_6: An evaluation by `infer`, of each shard, or nothing.
        evaluation_7: An evaluation by `infer`, of each shard, or nothing.
        evaluation_8: An evaluation by `infer`, of each shard, or nothing.
        evaluation_9: An evaluation by `infer`, of each shard, or nothing.
        evaluation_10: An evaluation by `infer`, of each shard, or nothing.
        evaluation_11: An evaluation by `infer`, of each shard, or nothing.
        evaluation_12: An evaluation by `infer`, of each shard, or nothing.
        evaluation_13: An evaluation by `infer`, of each shard, or nothing.
        evaluation_14: An evaluation by `infer`, of each shard, or nothing.
        evaluation_15: An evaluation by `infer`, of each shard, or nothing.
        evaluation_16: An evaluation by `infer`, of each shard, or nothing.
        evaluation_17: An evaluation by `infer`, of each shard, or nothing.
        evaluation_18: An evaluation by `infer`, of each shard, or nothing.
        evaluation_19: An evaluation by `infer`, of each shard, or nothing.
        evaluation_20: An evaluation by `infer`, of each shard, or nothing.
        evaluation_21: An evaluation by `infer`, of each shard, or nothing.
        evaluation_22: An evaluation by `infer`, of each shard, or nothing.
        evaluation_23: An evaluation by `infer`, of each shard, or nothing.
        evaluation_24: An evaluation by `infer`, of each shard, or nothing.
        evaluation_25: An evaluation by `infer`, of each shard, or nothing.
        evaluation_26: An evaluation by `infer`, of each shard, or nothing.
        evaluation_27: An evaluation by `infer`, of each shard, or nothing.
        evaluation_28: An evaluation by `infer`, of each shard, or nothing.
        evaluation_29: An evaluation by `infer`, of each shard, or nothing.
        evaluation_30: An evaluation by `infer`, of each shard, or nothing.
        evaluation_31: An evaluation by `infer`, of each shard, or nothing.
        evaluation_32: An evaluation by `infer`, of each shard, or nothing.
        curve: What `security_curve` drew of the same model and images, of each shard, or nothing.
        clean_accuracy_floor: The report warns if the model is right less often than this on clean images, in [0, 1].
    """
    from pathlib import Path

    from evasion.components.report import task

    given = [
        evaluation_1,
        evaluation_2,
        evaluation_3,
        evaluation_4,
        evaluation_5,
        evaluation_6,
        evaluation_7,
        evaluation_8,
        evaluation_9,
        evaluation_10,
        evaluation_11,
        evaluation_12,
        evaluation_13,
        evaluation_14,
        evaluation_15,
        evaluation_16,
        evaluation_17,
        evaluation_18,
        evaluation_19,
        evaluation_20,
        evaluation_21,
        evaluation_22,
        evaluation_23,
        evaluation_24,
        evaluation_25,
        evaluation_26,
        evaluation_27,
        evaluation_28,
        evaluation_29,
        evaluation_30,
        evaluation_31,
        evaluation_32,
    ]
    metrics.metadata.update(
        task.report(
            evaluations=[[Path(shard.path) for shard in evaluation] for evaluation in given if evaluation],
            curve=[Path(shard.path) for shard in curve or []],
            html=Path(html.path),
            summary=Path(summary.path),
            clean_accuracy_floor=clean_accuracy_floor,
        )
    )
