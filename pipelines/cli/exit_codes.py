"""Exit codes of the commands."""

SUCCESS = 0
FAILED = 1  # a run, a step or a threshold failed, or a file could not be written
BAD_INPUT = 2  # wrong usage; nothing was started
CANNOT_TELL = 2  # `evasion gate`: the report does not decide a threshold
CANCELLED = 3  # `evasion submit`: the run was cancelled or skipped
TIMED_OUT = 4  # `evasion submit`: --timeout has passed; the run continues
UNREACHABLE = 5  # `evasion submit`: Kubeflow, or MLflow for --output, does not respond or denies access
INTERRUPTED = 130

OF_A_RUN = {"SUCCEEDED": SUCCESS, "FAILED": FAILED, "CANCELED": CANCELLED, "SKIPPED": CANCELLED}
"""The exit code for each final state of a run in Kubeflow."""
