"""Whether a model that is mostly wrong would be right with another range of input values."""

import itertools

from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.pixels import to_float
from evasion.components.common.models.artifact import Card
from evasion.components.common.models.classifier import Classifier, stack
from evasion.components.common.models.ranges import RANGES
from evasion.components.common.results.evaluation import RangeTrial

DOUBTFUL = 0.5
"""A clean accuracy below which the other ranges are tried."""

IMAGES = 256
"""How many images they are tried on, spread over the dataset."""


def other_ranges(data: Dataset, classifier: Classifier, card: Card, batch_size: int) -> dict[str, RangeTrial]:
    """Return what the model would get right if it took other ranges of input values, by their names.

    The model converts [0, 1] to the range of its card. It gets the pixels that this conversion turns into values of
    the other range.

    Args:
        data: The original images.
        classifier: The model.
        card: Its description.
        batch_size: Images predicted at a time.
    """
    own = RANGES[card.input_range]
    places = card.indices_of(data.header.class_names, data.header.image_shape)
    others = {
        name: each
        for name, each in RANGES.items()
        if each != own and name != "tf" and (card.input_shape[2] == 3 or not each.of_colours)
    }
    right, images = dict.fromkeys(others, 0), 0
    every = -(-len(data) // IMAGES)
    sampled = itertools.islice((sample for batch in data.batches(batch_size) for sample in batch), 0, None, every)
    while batch := list(itertools.islice(sampled, batch_size)):
        x, labels = to_float(stack(batch)), places[[sample.label for sample in batch]]
        images += len(batch)
        for name, each in others.items():
            guesses = classifier.outputs(own.invert(each.convert(x))).argmax(axis=1)
            right[name] += int((guesses == labels).sum())
    return {name: RangeTrial(right[name], images) for name in others}
