"""What steps share. It is imported before TensorFlow is, by every step and by what starts them."""

import os

# Else the first process takes all memory of every GPU that it sees. TensorFlow reads it when it first looks at them.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
