"""What the tests of this folder share."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from evasion.components.gaussian_augmentation.task import gaussian_augmentation
from evasion.components.jpeg_compression.task import jpeg_compression
from evasion.components.spatial_smoothing.task import spatial_smoothing

GRAY, COLOUR = (28, 28, 1), (20, 24, 3)


DEFENSES = {
    "spatial_smoothing": (spatial_smoothing, {"window_size": 3}),
    "jpeg_compression": (jpeg_compression, {"quality": 30, "channels_first": False}),
    "gaussian_augmentation": (
        gaussian_augmentation,
        {"perform_data_augmentation": False, "ratio": 1.0, "sigma": 0.1},
    ),
}


every_defense = pytest.mark.parametrize("stage", DEFENSES)


def content(path):
    """The images, names and rows in a tar, read without the package under test."""
    with tarfile.open(path, "r:") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    names = list(files)
    assert names[0].endswith("/dataset.json")
    assert names[-1].endswith("/samples.csv")
    images = {}
    for name in names[1:-1]:
        pixels = np.asarray(Image.open(io.BytesIO(files[name])))
        images[name.partition("/")[2]] = pixels.reshape(*pixels.shape[:2], -1)
    rows = list(csv.DictReader(io.StringIO(files[names[-1]].decode(), newline="")))
    return json.loads(files[names[0]]), images, rows


def stacked(path):
    return np.stack(list(content(path)[1].values()))


def same(row):
    return float(row["l_1_norm"]) == 0
