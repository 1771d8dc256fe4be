"""MLflow's database in the output folder: created whole, whoever interrupts it or competes for it."""

import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from evasion.components.common import tracking
from evasion.components.common.tracking import TrackingError, client
from evasion.pipelines.local import store

PREPARE = "import pathlib, sys; from evasion.pipelines.local import store; store.prepare(pathlib.Path(sys.argv[1]))"


def preparing(folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PREPARE, folder], start_new_session=True)


def revision(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def test_an_interrupted_creation_leaves_nothing_and_the_next_one_works(tmp_path: Path, empty_mlflow: Path) -> None:
    killed = preparing(tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".mlflow.db.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.glob(".mlflow.db.*")), "the creation did not begin"
    # The process that creates it, and the one that waits for it.
    subprocess.run(["pkill", "-KILL", "-s", str(killed.pid)], check=True)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    store.prepare(tmp_path)
    assert revision(tmp_path / "mlflow.db") == revision(empty_mlflow)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_two_at_once_create_one(tmp_path: Path, empty_mlflow: Path) -> None:
    assert [process.wait() for process in [preparing(tmp_path), preparing(tmp_path)]] == [0, 0]
    assert revision(tmp_path / "mlflow.db") == revision(empty_mlflow)


@pytest.mark.parametrize("name", ["50%20off", "what?", "a#b"])
def test_a_folder_that_a_uri_cannot_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrackingError, match=re.escape("output must be without the characters % ? #")):
        store.prepare(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_database_whose_creation_was_interrupted_is_named(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    with pytest.raises(TrackingError, match=r"is incomplete: it lacks the tables .*runs.* Move it away"):
        store.prepare(tmp_path)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but a text that is long enough to be read as one" * 20)
    with pytest.raises(TrackingError, match="is not a database of MLflow: file is not a database"):
        store.prepare(tmp_path)


@pytest.mark.usefixtures("mlflow_store")
def test_a_locked_database_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "mlflow" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError) as raised, client.reachable():
            tracking.client.current_experiment(client.connect())
    assert re.fullmatch(
        r"MLflow at sqlite:///\S+ cannot be used; check that its folder can be written and that no other process holds "
        r"it,.*: database is locked",
        str(raised.value),
    )
