"""`step`: the decorator that makes a plain function a Kubeflow component run in the stage image."""

import functools
from importlib.metadata import version

from kfp import dsl

# The one place that names the image. Its tag is the package's version and never moves: Kubeflow's cache
# keys hold the tag alone, so a tag that moved would give results of old code.
IMAGE = f"evasion-pipelines:{version('evasion-pipelines')}"

step = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
