"""The step `infer`."""

from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from evasion.components.step import step


@step
def infer(
    dataset: Input[Dataset],
    model: Input[Model],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    confusion_matrix: Output[ClassificationMetrics],
    batch_size: int = 32,
    seed: int = -1,
) -> None:
    """Evaluate a model on a packed dataset, or on each of several.

    Classes are matched by name. Of images that were attacked, accuracy under attack is the share that is right now,
    robust accuracy the share of all that is right without the attack as well, with the same defense; the attack success
    rate is the share of those right before that are wrong now. Behind a defense, robust accuracy is known where the
    images with the defense and without the attack are evaluated too.

    Args:
        dataset: The images, clean, attacked or defended: all datasets of the tar, but of several those that await a
            defense which an attacker knows.
        model: The model.
        evaluation: Of each dataset all numbers, a row an image, and the images that a report shows.
        metrics: Accuracy with its 95 % Wilson interval, loss, precision, recall, AUC, counts; of attacked images
            `accuracy_under_attack` in place of `accuracy`, robust accuracy, attack success rate; of further datasets
            under `<dataset>/`.
        confusion_matrix: Of the first dataset and at most 30 classes: those with the most errors, and "other".
        batch_size: Images predicted at a time.
        seed: Recorded; nothing here is random.
    """
    from evasion.components.body import call

    result = call("infer", locals())
    metrics.metadata.update(result["metrics"])
    confusion_matrix.log_confusion_matrix(result["categories"], result["matrix"])
