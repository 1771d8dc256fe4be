"""Unpack the tar on standard input into the folder given; what is there already under its names is replaced.

The second argument is how many files there must be: a tar that breaks off between two of them looks whole. Every file
and folder of the tar's root appears whole or not at all, readable for all: a step may run as any user.
"""

import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

data, files = Path(sys.argv[1]), int(sys.argv[2])
os.umask(0o022)
with tempfile.TemporaryDirectory(dir=data, prefix=".receiving-") as received:
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as sent:
        for member in sent:
            for name in map(PurePosixPath, (member.name, member.linkname)):
                if name.is_absolute() or ".." in name.parts:
                    sys.exit(f"Names must lie in the folder. Received: {str(name)!r}")
            target = Path(received, member.name)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                target.parent.mkdir(parents=True, exist_ok=True)
                with sent.extractfile(member) as source, target.open("wb") as copied:
                    shutil.copyfileobj(source, copied)
                if target.stat().st_size != member.size:
                    sys.exit(f"The transfer broke off at {member.name!r}.")
            elif member.islnk():  # the same file as one before
                shutil.copyfile(Path(received, member.linkname), target)
            else:
                sys.exit(f"There must be files and folders alone. Received: {member.name!r}")
    if (found := sum(path.is_file() for path in Path(received).rglob("*"))) != files:
        sys.exit(f"The transfer broke off: {found} of {files} files came.")
    for source in Path(received).iterdir():
        target = data / source.name
        if target.is_dir():
            shutil.rmtree(target)
        source.replace(target)
        print(f"{target}: {sum(path.is_file() for path in [target, *target.rglob('*')])} files")
