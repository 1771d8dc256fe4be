"""Code that steps share. Every step, and the code that starts steps, imports it before TensorFlow."""

import os

# Otherwise the first process takes all memory of every visible GPU. TensorFlow reads it when it first uses one.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
