"""Which commit of a Git repository a folder holds."""

import subprocess
from pathlib import Path


def commit_of(folder: Path) -> str:
    """Return the commit, with `-dirty` behind it where files differ from it; nothing where there is none."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
