"""Versions of the software that made an artifact."""

import platform
from importlib.metadata import version

# OpenCV makes JPEG, PNG, the median filter and the noise.
RECORDED = ("evasion-pipelines", "numpy", "opencv-python-headless", "pillow", "scipy")
MODEL_RECORDED = (*RECORDED, "keras", "adversarial-robustness-toolbox")


def recorded(*, model: bool = False) -> dict[str, str]:
    """Return the versions that a result depends on. They come from package metadata: a defense imports no TensorFlow.

    Args:
        model: Whether the stage runs a model, so that Keras, ART and TensorFlow are included.
    """
    recorded_versions = {"python": platform.python_version()}
    recorded_versions |= {name: version(name) for name in (MODEL_RECORDED if model else RECORDED)}
    if model:
        import tensorflow as tf

        # The distribution is tensorflow or tensorflow-cpu; the module is loaded already.
        recorded_versions["tensorflow"] = tf.__version__
    return recorded_versions
