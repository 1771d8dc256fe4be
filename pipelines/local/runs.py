"""The runs of an output folder: what `run.json` in each says, and their removal."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from evasion.components.common import tracking
from evasion.components.common.files import replacing

RECORD = "run.json"


class RunError(ValueError):
    """A run that is to be removed does not exist, or still runs."""


@dataclass(frozen=True)
class Record:
    """What a run says of itself.

    Attributes:
        pipeline: The pipeline's name.
        started: When it started, in ISO format.
        state: RUNNING, FINISHED, FAILED or KILLED.
        run_id: The pipeline's run in MLflow.
        tracking_uri: MLflow's tracking URI; `""` if an MLflow server was started for the run.
        process: Host, id and start of the process that runs it.
    """

    pipeline: str
    started: str
    state: str
    run_id: str
    tracking_uri: str
    process: str


@dataclass(frozen=True)
class Run:
    """A run of an output folder.

    Attributes:
        folder: Its folder.
        record: What it says of itself; None for a run of an earlier version.
        model: The registered model that it made or evaluated, or its architecture; `""` without a model.
        size: The bytes that its folder takes on the disk.
    """

    folder: Path
    record: Record | None
    model: str
    size: int


@contextmanager
def recorded(folder: Path, pipeline: str, run_id: str, tracking_uri: str) -> Iterator[None]:
    """Record a run in its folder: that it runs, and after the block how it has ended."""
    process = tracking.this_process()
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    record = Record(pipeline, started, "RUNNING", run_id, tracking_uri, process)
    _write(folder, record)
    state = "FAILED"
    try:
        yield
        state = "FINISHED"
    except KeyboardInterrupt:
        state = "KILLED"
        raise
    finally:
        with suppress(OSError):  # a full disk is no reason to hide how the run has ended
            _write(folder, replace(record, state=state))


def _write(folder: Path, record: Record) -> None:
    with replacing(folder / RECORD) as file:
        file.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def _read(folder: Path) -> Record | None:
    try:
        record = Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    killed = record.state == "RUNNING" and tracking.has_ended(record.process)
    return replace(record, state="KILLED") if killed else record


def in_folder(output: Path) -> list[Run]:
    """Return the runs of an output folder, the newest first.

    Args:
        output: The output folder.
    """
    folders = [path for path in output.iterdir() if _is_run(path)] if output.is_dir() else []
    return [_run(folder) for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)]


def _is_run(folder: Path) -> bool:
    return not folder.is_symlink() and ((folder / RECORD).is_file() or (folder / "log.txt").is_file())


def _run(folder: Path) -> Run:
    return Run(folder, _read(folder), _model(folder), _size(folder))


def _model(folder: Path) -> str:
    """Return the model of a run, from the first card of its steps."""
    for card in sorted(folder.glob("steps/*/*/*/model.json")):
        with suppress(OSError, ValueError, AttributeError):
            content = json.loads(card.read_text(encoding="utf-8"))
            name = "/".join(str(content[key]) for key in ("name", "version") if content.get(key))
            return name or str(content.get("architecture", ""))
    return ""


def _size(folder: Path) -> int:
    """Return the bytes that a folder takes on the disk; a file with two names counts once."""
    sizes = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.lstat()
            sizes[status.st_dev, status.st_ino] = 512 * status.st_blocks
    return sum(sizes.values())


def to_remove(output: Path, names: Sequence[str]) -> list[Run]:
    """Return the runs of these names.

    Raises:
        RunError: One does not exist, or still runs.
    """
    folders = {name: output / name for name in names}
    for name, folder in folders.items():
        if Path(name).name != name or not folder.is_dir() or not _is_run(folder):
            raise RunError(f"NAME must be a run in {output}; list them with `evasion runs`. Received: {name!r}")
    runs = [_run(folder) for folder in folders.values()]
    for run in runs:
        if run.record and run.record.state == "RUNNING":
            raise RunError(f"A run must have ended to be removed. Received: {run.folder.name}, which is RUNNING")
    return runs


def remove(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Remove runs from MLflow and from the disk.

    Returns:
        The registered models that stay, as `name/version`, and the names of the runs whose entries in MLflow stay,
        since their server does not run or they are of an earlier version.

    Raises:
        TrackingError: If MLflow does not answer; then nothing is removed from the disk.
        OSError: If a folder cannot be removed.
    """
    by_uri: dict[str, list[str]] = {}
    for run in runs:
        if run.record and run.record.tracking_uri:
            by_uri.setdefault(run.record.tracking_uri, []).append(run.record.run_id)
    models = [model for uri, run_ids in by_uri.items() for model in tracking.remove_pipeline_runs(run_ids, uri)]
    for run in runs:
        shutil.rmtree(run.folder)
    return models, [run.folder.name for run in runs if not (run.record and run.record.tracking_uri)]


def address(uri: str) -> str:
    """Return a tracking URI without its login, for a file."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.password else uri
