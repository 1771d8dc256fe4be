"""Unpack the tar on standard input into the folder given; what is there already under its names is replaced.

Every file and folder of the tar's root appears whole or not at all, readable for all: a step may run as any user.
"""

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path


def readable(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Refuse what would lie outside the folder, and let all read the rest."""
    return tarfile.data_filter(member, folder).replace(mode=0o755 if member.isdir() else 0o644)


data = Path(sys.argv[1])
with tempfile.TemporaryDirectory(dir=data, prefix=".receiving-") as received:
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as sent:
        sent.extractall(received, filter=readable)  # noqa: S202 - the filter refuses what is dangerous
    for source in Path(received).iterdir():
        target = data / source.name
        if target.is_dir():
            shutil.rmtree(target)
        source.replace(target)
        print(f"{target}: {sum(path.is_file() for path in [target, *target.rglob('*')])} files")
