"""The Git commit of a folder."""

import subprocess
from pathlib import Path


def commit_of(folder: Path) -> str:
    """Return the commit, with the suffix `-dirty` if files differ from it; blank outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
