"""Cron expressions in the form that Kubeflow expects."""

import re

from evasion.components.common.validate import ParameterError

FIELD = r"[\d*?/,A-Za-z-]+"


def six_fields(text: str) -> str:
    """Return a cron expression with a leading field of seconds, which Kubeflow expects and crontab does not have.

    Kubeflow would read five fields as seconds to months, and start the run every hour.

    Raises:
        ValueError: The expression is invalid.
    """
    text = text.strip()
    if re.fullmatch(r"@(every [\dhms.]+|yearly|annually|monthly|weekly|daily|midnight|hourly)", text):
        return text
    fields = text.split()
    if len(fields) not in (5, 6) or not all(re.fullmatch(FIELD, field) for field in fields):
        raise ParameterError(
            "cron must have five fields (minute, hour, day, month, weekday), a sixth for seconds before them, or be a "
            f"name such as @daily. Received: cron={text!r}",
            "cron",
        )
    return " ".join(["0", *fields] if len(fields) == 5 else fields)
