"""Evaluate a model on packed datasets: what it predicts of every image, and the numbers of it all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evasion.components.common import validate


def check(*, batch_size: int, seed: int, **_: object) -> None:
    """Validate the parameters."""
    validate.positive_integer("batch_size", batch_size)
    validate.seed(seed)


def infer(
    *, dataset: Path, others: Sequence[Path], model: Path, evaluation: Path, batch_size: int, seed: int
) -> dict[str, Any]:
    """Write the evaluation of a model on datasets; the parameters are those of the step of this name.

    `evaluation` becomes a folder of one folder a dataset, named after it, and `evaluations.json`, which lists them.
    Of several datasets in a tar those are left out that an attack aimed at a defense which they have not met.

    Returns:
        `metrics`: flat numbers, of the first dataset by their names, of each further one with its name before;
        `categories` and `matrix`: the confusion matrix of the first, to be shown.

    Raises:
        ValueError: If two datasets have one name, or one does not suit the model.
    """
    check(batch_size=batch_size, seed=seed)

    from contextlib import ExitStack

    from evasion.components.common import seeding, tracking
    from evasion.components.common.data.distances import flat
    from evasion.components.common.files import replacing
    from evasion.components.common.models.artifact import Card
    from evasion.components.common.results.evaluation import EVALUATION, PREDICTIONS, Evaluation, write_list
    from evasion.components.infer.confusion import readable
    from evasion.components.infer.robust import behind_defenses

    used = {"batch_size": batch_size, "seed": seeding.resolve(seed)}
    with tracking.stage("infer", used) as run, ExitStack() as stack, replacing(evaluation) as folder:
        card = Card.read(model)
        datasets = [stack.enter_context(data) for data in _to_evaluate([dataset, *others])]
        first, several = datasets[0], len(datasets) > 1
        card = card.named_by(first.header.class_names)
        for data in datasets:  # refused before TensorFlow is loaded
            card.indices_of(data.header.class_names, data.header.image_shape)
        run.tag({"dataset_sha256": first.sha256}, name="infer" if several else f"infer {first.header.title}")

        from evasion.components.common.models import classifier
        from evasion.components.infer.evaluate import evaluate

        loaded = classifier.load(model)
        shown: dict[str, Any] = {}
        evaluated = []
        for place, data in enumerate(datasets):
            name = data.header.name
            result = evaluate(data, loaded, card, folder / name, used, f"batches of {name}" if several else "batches")
            before = f"{name}/" if place else ""
            metrics = {f"{before}{key}": value for key, value in result.metrics.items()}
            distances = {f"{before}{key}": value for key, value in flat(result.distances).items()}
            run.log_metrics(metrics | distances)
            for file in (EVALUATION, PREDICTIONS):
                run.log_file(folder / name / file, f"{name}/{file}" if several else file)
            if not place:
                categories, matrix = readable(result.confusion, card.class_names)
                shown = {"metrics": {}, "categories": categories, "matrix": matrix}
            shown["metrics"] |= metrics
            evaluated.append(Evaluation(directories=(folder / name,), **vars(result)))
        for name, robust in behind_defenses(evaluated).items():
            metrics = {
                f"{'' if name == first.header.name else f'{name}/'}{key}": value for key, value in robust.items()
            }
            run.log_metrics(metrics)
            shown["metrics"] |= metrics
        write_list(folder, [data.header.name for data in datasets])
    return shown


def _to_evaluate(tars: Sequence[Path]) -> list[Any]:
    """Return the datasets, not yet opened."""
    from evasion.components.common.data.dataset import Dataset
    from evasion.components.common.results.evaluation import EVALUATIONS

    datasets = Dataset.to_work_on(tars)
    names = [data.header.name for data in datasets]
    if len({*names, EVALUATIONS}) <= len(names):
        raise ValueError(
            f"Datasets to evaluate must have names of their own, none of them {EVALUATIONS}. "
            f"Received: {', '.join(names)}"
        )
    return datasets
