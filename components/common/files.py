"""Files that are written completely or not at all, and their hashes."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block succeeds, otherwise remove it.

    What a killed process has left under the temporary name is removed first.

    Raises:
        OSError: If the disk is full, or a quota or file-size limit is reached. The message names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    remove(temporary)
    try:
        yield temporary
        if path.is_dir() and temporary.is_dir():
            remove(path)  # only an empty folder can be replaced
        temporary.replace(path)
    except BaseException as error:
        remove(temporary)
        if isinstance(error, OSError) and error.errno in FULL_ERRORS:
            message = f"{os.strerror(error.errno)}; the incomplete file was removed"
            raise OSError(error.errno, message, str(path)) from error
        raise


def remove(path: Path) -> None:
    """Remove a file, a folder or a link (not its target) if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joined(hashes: Sequence[str]) -> str:
    """Return one hash for several parts: the sha256 of their hashes, one on each line. A single part keeps its own."""
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(f"{part}\n" for part in hashes).encode()).hexdigest()
