"""Runs steps in containers of the stage image, which can write only their outputs."""

import codecs
import contextlib
import os
import shlex
import stat
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

from evasion.components.common import tracking
from evasion.components.step import IMAGE
from evasion.pipelines.local import process
from evasion.pipelines.plan import PlannedStep

# A docker.DockerClient, imported only where containers are used.
Engine = Any

NOBODY = 65532  # the user and the group of containers that root starts
SCRATCH = "/scratch"  # a container's folder for temporary files; must not hide a path of this machine with data

# Parameters of steps that may be paths on this machine.
_PATHS = ("data_dir", "weights", "name", "class_names")
# Variables that steps get from this process in addition to those that their image sets.
_PASSED_ON = (
    *("MLFLOW_", "AWS_", "GOOGLE_", "TF_", "OMP_", "STORAGE_EMULATOR_HOST", "PYTHONUNBUFFERED"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)


class EngineError(RuntimeError):
    """The container engine is missing, lacks an image, or refuses a container."""


class Confinement(TypedDict):
    """The arguments of `containers.create` that remove all privileges that a container does not need."""

    user: str
    read_only: bool
    cap_drop: list[str]
    security_opt: list[str]


@contextmanager
def engine(images: Iterable[str]) -> Iterator[Engine]:
    """Connect to the container engine, and check that it has these images.

    Raises:
        EngineError: The engine does not respond or is rootless, or an image is missing.
    """
    import docker

    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        raise EngineError(
            f"--docker requires a container engine, and none responds at "
            f"{os.environ.get('DOCKER_HOST', 'unix:///var/run/docker.sock')}: {error}. Start one (`dockerd`, Docker "
            "Desktop), check that you have access to it, or run without --docker."
        ) from error
    with contextlib.closing(client):
        if any("rootless" in option for option in client.info().get("SecurityOptions") or ()):
            raise EngineError(
                "--docker requires an engine that runs as root: in a rootless engine containers cannot run as you."
            )
        for image in images:
            try:
                client.images.get(image)
            except docker.errors.ImageNotFound as error:
                raise EngineError(f"The container engine has no image {image}. Build it with `make image`.") from error
        yield client


@contextmanager
def engine_errors(context: str) -> Iterator[None]:
    """Convert errors of the engine to an EngineError with this context."""
    import docker

    try:
        yield
    except docker.errors.APIError as error:
        raise EngineError(f"{context}: {error.explanation or error}") from error


def image(target: str) -> str:
    """Return the name of the image for a target of the Dockerfile."""
    return IMAGE if target == "cpu" else f"{IMAGE}-{target}"


def user() -> tuple[int, int]:
    """Return the ids of the user and the group of containers: those of this process, or nobody's if it is root."""
    return (os.getuid(), os.getgid()) if os.getuid() else (NOBODY, NOBODY)


def writable_folder(folder: Path) -> Path:
    """Create a folder that containers can write to, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.getuid():
        os.chown(folder, *user())
    return folder


def confinement() -> Confinement:
    """Return the settings that limit every container to this user's permissions in its mounted folders."""
    return {
        "user": ":".join(map(str, user())),
        "read_only": True,
        "cap_drop": ["ALL"],
        # With SELinux, label=disable allows reading the mounted folders without relabelling them.
        "security_opt": ["no-new-privileges", "label=disable"],
    }


def local_paths(planned: Iterable[PlannedStep]) -> list[str]:
    """Return the files and folders of this machine that steps read.

    Raises:
        EngineError: Containers may not read one of them.
    """
    paths = {
        os.path.abspath(value)  # noqa: PTH100 - a path with ".." has to become one without, links untouched
        for step in planned
        for name, value in step.arguments.items()
        if name in _PATHS and value and Path(value).exists()
    }
    for path in paths:
        if not os.getuid() and not _readable_by_others(Path(path).stat().st_mode):
            raise EngineError(
                f"Containers started by root run as user {NOBODY}, who may not read {path}. Start as the owner of the "
                f"data, or run: chmod -R o+rX {shlex.quote(path)}"
            )
    return sorted(paths)


def _readable_by_others(mode: int) -> bool:
    required = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return mode & required == required


def _is_absolute_file(value: str) -> bool:
    try:
        return Path(value).is_absolute() and Path(value).is_file()
    except OSError:  # too long for a path; the error would show the value, which may be a secret
        return False


def _name_with_digest(client: Engine, name: str) -> str:
    """Return the name of an image with its digest in the registry, or with its id in this engine if it has none."""
    image = client.images.get(name)
    return str(next(iter(image.attrs.get("RepoDigests") or ()), f"{name}@{image.id}"))


class ContainerLauncher:
    """Runs each step in a container of its own.

    Args:
        client: The container engine.
        network: The engine's network for the containers.
        outputs: The folder that they can write to.
        inputs: Files and folders that they can read.
        variables: Environment variables for all containers.
    """

    def __init__(
        self, client: Engine, *, network: str, outputs: Path, inputs: Iterable[str], variables: Mapping[str, str]
    ) -> None:
        self._client = client
        self._network = network
        self._outputs = writable_folder(outputs)
        inherited = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        self._variables = {**inherited, **variables, "TMPDIR": SCRATCH, "HOME": SCRATCH}
        # Variables may name files, such as credentials and certificates.
        files = filter(_is_absolute_file, self._variables.values())
        self._inputs = [*inputs, *files]

    def run(
        self, image: str, command: Sequence[str], variables: Mapping[str, str], on_line: Callable[[str], None]
    ) -> tuple[int, list[str]]:
        """Run a command to its end; if this process is interrupted, end the command first. Remove the container.

        Args:
            image: The image, which the engine has.
            command: The command and its arguments.
            variables: Environment variables in addition to those of all containers.
            on_line: Called with every line of output, without colours.

        Returns:
            The exit status, and the last lines of output.

        Raises:
            EngineError: The engine refuses to start the container.
        """
        last_lines: deque[str] = deque(maxlen=process.KEPT_LINES)

        def process_line(line: str) -> None:
            last_lines.append(process.plain(line).rstrip())
            on_line(last_lines[-1])

        with (
            tempfile.TemporaryDirectory(prefix="evasion-") as scratch,
            engine_errors(f"Could not run a container of {image}"),
        ):
            volumes = {path: {"bind": path, "mode": "ro"} for path in self._inputs}
            scratch_folder = writable_folder(Path(scratch))
            for folder, target in ((self._outputs, str(self._outputs)), (scratch_folder, SCRATCH)):
                volumes[str(folder)] = {"bind": target, "mode": "rw"}
            container = self._client.containers.create(
                image,
                # A single stream: of two, the engine may report errors before earlier output.
                ["sh", "-c", 'exec "$@" 2>&1', "sh", *command],
                environment={**self._variables, tracking.IMAGE: _name_with_digest(self._client, image), **variables},
                network=self._network,
                volumes=volumes,
                # Paths may be relative to the current folder.
                working_dir=str(Path.cwd()),
                **confinement(),
            )
            try:
                with contextlib.closing(container.attach(stream=True)) as chunks:
                    container.start()
                    try:
                        for line in _lines(chunks):
                            process_line(line)
                    except BaseException:
                        _stop(container, chunks, process_line)
                        raise
                return int(container.wait()["StatusCode"]), list(last_lines)
            finally:
                container.remove(force=True)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a text that arrives in chunks."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from lines
    if rest:
        yield rest


def _stop(container: Any, chunks: Iterable[bytes], process_line: Callable[[str], None]) -> None:
    """Interrupt a step, so that it can close its MLflow run, and kill it if that takes too long."""
    import docker

    def kill() -> None:
        with suppress(docker.errors.APIError):
            container.kill()

    timer = threading.Timer(process.GRACE, kill)
    timer.start()
    try:
        with suppress(docker.errors.APIError):  # the container may have ended, or not started yet
            container.kill("SIGINT")  # reaches only its first process
            container.exec_run(["sh", "-c", "kill -INT -1"], detach=True)  # reaches all other processes
        for line in _lines(chunks):
            process_line(line)
    finally:
        timer.cancel()
