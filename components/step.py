"""`step`: the decorator that turns a plain function into a Kubeflow component that runs in the stage image."""

import functools
from importlib.metadata import version

from kfp import dsl

# The only place that names the image. Its tag is the package's version and never moves: Kubeflow's cache keys contain
# only the tag, so a tag that moved would give results of old code.
IMAGE = f"evasion-pipelines:{version('evasion-pipelines')}"

step = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
