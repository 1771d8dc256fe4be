"""MLflow's database in the output folder: created whole, by one process at a time."""

import fcntl
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from evasion.components.common.tracking import TrackingError

DATABASE = "mlflow.db"
REFUSED = "%?#"
"""Characters with a meaning of their own in the URI by which MLflow knows the folder."""

# MLflow creates some fifty tables in as many steps, and does not recover from half of them. The folder of the artifacts
# is named so that no `mlruns` appears in the current folder.
_CREATE = """
import logging, sys
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
logging.disable(logging.INFO)
SqlAlchemyStore("sqlite:///" + sys.argv[1], sys.argv[2])
"""


def prepare(output: Path) -> Path:
    """Return the database of an output folder, after creating it if there is none.

    It is created under a temporary name and then renamed, so that an interrupted creation leaves no half of it; a lock
    makes a second process wait for the first one.

    Args:
        output: The output folder, an absolute path; it is created.

    Raises:
        TrackingError: The folder's name has a character that a URI gives a meaning, the database cannot be created, or
            it is incomplete.
    """
    if bad := sorted(set(REFUSED) & set(str(output))):
        raise TrackingError(
            f"output must be without the characters {' '.join(REFUSED)}, since MLflow records it in URIs. "
            f"Received: output={str(output)!r}, with {' '.join(bad)}. Take another folder, or pass --tracking-uri."
        )
    output.mkdir(parents=True, exist_ok=True)
    database = output / DATABASE
    with _locked(output):
        if not database.exists():
            _create(database, output / "mlartifacts")
    _check(database)
    return database


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel releases it when the process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create(database: Path, artifacts: Path) -> None:
    # What an earlier creation left that was killed. The lock is held, so nobody is writing it.
    for left in database.parent.glob(f".{DATABASE}.*"):
        left.unlink()
    partial = database.with_name(f".{DATABASE}.{os.getpid()}")
    command = [sys.executable, "-c", _CREATE, str(partial), str(artifacts)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    if finished.returncode:
        partial.unlink(missing_ok=True)
        lines = [line.strip() for line in finished.stderr.splitlines() if "Error" in line]
        cause = lines[0] if lines else f"exit status {finished.returncode}"
        raise TrackingError(f"MLflow's database {database} cannot be created: {cause}")
    partial.rename(database)


def _check(database: Path) -> None:
    """Raise if a database lacks tables: version 0.2 and earlier left such a one where it was killed while creating it.

    A database that is locked or of another version is left to MLflow, which names the cause.
    """
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            return
        raise TrackingError(f"{database} is not a database of MLflow: {error}. Move it away.") from None
    # The first tables come with the first migration, these with one of the last.
    if missing := sorted({"experiments", "runs", "alembic_version", "logged_models"} - tables):
        raise TrackingError(
            f"{database} is incomplete: it lacks the tables {', '.join(missing)}. Its creation was interrupted, or it "
            f"is of an MLflow before version 3. Move it away, or run `mlflow db upgrade sqlite:///{database}`."
        )
