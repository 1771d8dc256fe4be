"""Runs steps in containers of the stage image, which may write nothing but their outputs."""

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

NOBODY = 65532  # the user and the group of containers where root starts them
SCRATCH = "/scratch"  # a container's folder for temporary files: no path of this machine's that may hold data

# Parameters of steps that may be paths of this machine.
_PATHS = ("data_dir", "weights")
# Variables that steps get from this process beside those that their image sets.
_PASSED_ON = (
    *("MLFLOW_", "AWS_", "GOOGLE_", "TF_", "OMP_", "STORAGE_EMULATOR_HOST", "PYTHONUNBUFFERED"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)


class EngineError(RuntimeError):
    """There is no container engine, it lacks an image, or it refuses a container."""


class Confinement(TypedDict):
    """The arguments of `containers.create` that take from a container all that it does not need."""

    user: str
    read_only: bool
    cap_drop: list[str]
    security_opt: list[str]


@contextmanager
def engine(images: Iterable[str]) -> Iterator[Engine]:
    """Connect to the container engine, which must hold these images.

    Raises:
        EngineError: It does not answer, is rootless, or an image is missing.
    """
    import docker

    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        raise EngineError(
            f"--docker needs a container engine, and none answers at "
            f"{os.environ.get('DOCKER_HOST', 'unix:///var/run/docker.sock')}: {error}. Start one (`dockerd`, Docker "
            "Desktop), see that you may use it, or leave out --docker, which needs none."
        ) from error
    with contextlib.closing(client):
        if any("rootless" in option for option in client.info().get("SecurityOptions") or ()):
            raise EngineError("--docker needs an engine that root runs: in a rootless one no container can be you.")
        for image in images:
            try:
                client.images.get(image)
            except docker.errors.ImageNotFound as error:
                raise EngineError(f"The container engine holds no image {image}: build it by `make image`.") from error
        yield client


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what the engine objects to into an EngineError that names the container."""
    import docker

    try:
        yield
    except docker.errors.APIError as error:
        raise EngineError(f"{what}: {error.explanation or error}") from error


def image(target: str) -> str:
    """Return the name of the image of a target of the Dockerfile."""
    return IMAGE if target == "cpu" else f"{IMAGE}-{target}"


def user() -> tuple[int, int]:
    """Return the ids of the user and the group of containers: those of this process, unless it is root's."""
    return (os.getuid(), os.getgid()) if os.getuid() else (NOBODY, NOBODY)


def give(folder: Path) -> Path:
    """Make a folder into which containers may write."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.getuid():
        os.chown(folder, *user())
    return folder


def confinement() -> Confinement:
    """Return what every container gets: this user's rights, in the folders mounted into it and nowhere else."""
    return {
        "user": ":".join(map(str, user())),
        "read_only": True,
        "cap_drop": ["ALL"],
        # The second lets it read the folders mounted where SELinux is on, without relabelling them.
        "security_opt": ["no-new-privileges", "label=disable"],
    }


def local_paths(planned: Iterable[PlannedStep]) -> list[str]:
    """Return the files and folders of this machine that steps are given to read.

    Raises:
        EngineError: Containers may not read one.
    """
    given = {
        os.path.abspath(value)  # noqa: PTH100 - a path with ".." has to become one without, links untouched
        for step in planned
        for name, value in step.arguments.items()
        if name in _PATHS and value and Path(value).exists()
    }
    for path in given:
        if not os.getuid() and not _for_all(Path(path).stat().st_mode):
            raise EngineError(
                f"Started by root, containers run as user {NOBODY}, who may not read {path}. Start as the user whose "
                f"data they are, or: chmod -R o+rX {shlex.quote(path)}"
            )
    return sorted(given)


def _for_all(mode: int) -> bool:
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return mode & needed == needed


def _identity(client: Engine, name: str) -> str:
    """Return the name of an image with a digest: that of its registry, or that of this engine where it has none."""
    found = client.images.get(name)
    return str(next(iter(found.attrs.get("RepoDigests") or ()), f"{name}@{found.id}"))


class ContainerLauncher:
    """Starts each step in a container of its own.

    Args:
        client: The container engine.
        network: The engine's network that the containers join.
        outputs: The folder that they may write to.
        inputs: Files and folders that they may read.
        variables: Environment variables for all of them.
    """

    def __init__(
        self, client: Engine, *, network: str, outputs: Path, inputs: Iterable[str], variables: Mapping[str, str]
    ) -> None:
        self._client = client
        self._network = network
        self._outputs = give(outputs)
        inherited = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        self._variables = {**inherited, **variables, "TMPDIR": SCRATCH, "HOME": SCRATCH}
        # Such as credentials and certificates.
        files = [value for value in self._variables.values() if Path(value).is_absolute() and Path(value).is_file()]
        self._inputs = [*inputs, *files]

    def run(
        self, image: str, command: Sequence[str], variables: Mapping[str, str], hear: Callable[[str], None]
    ) -> tuple[int, list[str]]:
        """Run a command to its end; if this process is interrupted, end the command first. No container is left.

        Args:
            image: The image, which the engine holds.
            command: The command and its arguments.
            variables: Environment variables beside those of all containers.
            hear: Is given every line that it prints, without colours.

        Returns:
            The exit status, and the last lines that it printed.

        Raises:
            EngineError: The engine refuses to start the container.
        """
        last_lines: deque[str] = deque(maxlen=process.KEPT_LINES)

        def take(line: str) -> None:
            last_lines.append(process.plain(line).rstrip())
            hear(last_lines[-1])

        with tempfile.TemporaryDirectory(prefix="evasion-") as scratch, told(f"no container of {image}"):
            volumes = {path: {"bind": path, "mode": "ro"} for path in self._inputs}
            for folder, place in ((self._outputs, str(self._outputs)), (give(Path(scratch)), SCRATCH)):
                volumes[str(folder)] = {"bind": place, "mode": "rw"}
            container = self._client.containers.create(
                image,
                # One stream, or the engine would tell errors before what was printed earlier.
                ["sh", "-c", 'exec "$@" 2>&1', "sh", *command],
                environment={**self._variables, tracking.IMAGE: _identity(self._client, image), **variables},
                network=self._network,
                volumes=volumes,
                # Paths may be relative to it.
                working_dir=str(Path.cwd()),
                **confinement(),
            )
            try:
                with contextlib.closing(container.attach(stream=True)) as chunks:
                    container.start()
                    try:
                        for line in _lines(chunks):
                            take(line)
                    except BaseException:
                        _stop(container, chunks, take)
                        raise
                return int(container.wait()["StatusCode"]), list(last_lines)
            finally:
                container.remove(force=True)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a text that arrives in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    begun = ""
    for chunk in chunks:
        *whole, begun = (begun + decoder.decode(chunk)).split("\n")
        yield from whole
    if begun:
        yield begun


def _stop(container: Any, chunks: Iterable[bytes], take: Callable[[str], None]) -> None:
    """Interrupt a step, so that it can close its MLflow run, and end it if that takes too long."""
    import docker

    def kill() -> None:
        with suppress(docker.errors.APIError):
            container.kill()

    timer = threading.Timer(process.GRACE, kill)
    timer.start()
    try:
        with suppress(docker.errors.APIError):  # it may have ended, or not begun
            container.kill("SIGINT")  # reaches its first process alone
            container.exec_run(["sh", "-c", "kill -INT -1"], detach=True)  # reaches all others
        for line in _lines(chunks):
            take(line)
    finally:
        timer.cancel()
