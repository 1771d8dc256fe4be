"""What the tests of this folder share."""

import contextlib
import dataclasses

from hypothesis import HealthCheck, settings

from evasion.components.common.data import writer
from evasion.components.common.data.dataset import Dataset

# Hypothesis draws its own examples, so the same file may serve all of them; and this machine may be busy.
relaxed = settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))


def several(path, make, **named):
    """A tar with several datasets, one for each name, each with the images of a dataset from `make`; and its parts."""
    singles = {}
    for name, pixels in named.items():
        singles[name] = make(pixels)
    opened = {name: Dataset(single) for name, single in singles.items()}
    with contextlib.ExitStack() as stack:
        for dataset in opened.values():
            stack.enter_context(dataset)
        renamed = {name: dataclasses.replace(dataset.header, name=name) for name, dataset in opened.items()}
        writer.write_all(path, [(renamed[name], list(opened[name].samples())) for name in named])
    return path
