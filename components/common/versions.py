"""Which software made an artifact."""

import platform
from importlib.metadata import version

RECORDED = ("evasion-pipelines", "numpy", "pillow", "scipy")
MODEL_RECORDED = (*RECORDED, "keras", "adversarial-robustness-toolbox")


def recorded(*, model: bool = False) -> dict[str, str]:
    """Return the versions that a result depends on, from package metadata alone: a defense imports no TensorFlow.

    Args:
        model: Whether the stage runs a model, so that Keras, ART and TensorFlow count as well.
    """
    found = {"python": platform.python_version()}
    found |= {name: version(name) for name in (MODEL_RECORDED if model else RECORDED)}
    if model:
        import tensorflow as tf

        # Its distribution is tensorflow or tensorflow-cpu, and the module is loaded already.
        found["tensorflow"] = tf.__version__
    return found
