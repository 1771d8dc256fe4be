"""An MLflow server with PostgreSQL in containers, for the runs of one folder."""

import fcntl
import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evasion.pipelines.local.containers import (
    Engine,
    EngineError,
    confinement,
    engine_errors,
    image,
    user,
    writable_folder,
)

START_TIMEOUT = 180.0  # seconds; the first start creates the tables
PORT = 5000
HOST = "mlflow"  # the server's name in the containers' network
IMAGES = (image("mlflow"), image("postgres"))


@dataclass(frozen=True)
class Server:
    """A running MLflow server.

    Attributes:
        address: Its address on this machine.
        container_address: Its address in containers.
        network: The engine's network of those containers.
    """

    address: str
    container_address: str
    network: str


def existing(uri: str) -> Server:
    """Return the existing server at a tracking URI.

    Raises:
        EngineError: The URI is not the address of a server but of a file or a database.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        raise EngineError(
            f"With --docker, steps connect to an MLflow server: the tracking URI must begin with http:// or https://. "
            f"Received: {parts.scheme}:... Without a tracking URI, a server is started for the run."
        )
    # In a container "localhost" is the container, unless it shares this machine's network.
    local = parts.hostname in ("localhost", "::1") or str(parts.hostname).startswith("127.")
    return Server(uri, uri, "host" if local else "bridge")


def proxy_exceptions(server: Server) -> dict[str, str]:
    """Return environment variables with which containers connect to the server without a proxy."""
    hosts = (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), urlsplit(server.container_address).hostname)
    exceptions = ",".join(host for host in hosts if host)
    return {"NO_PROXY": exceptions, "no_proxy": exceptions}


@contextmanager
def running(client: Engine, folder: Path) -> Iterator[Server]:
    """Run an MLflow server with PostgreSQL for a block, or share the server of another block.

    The two containers share one network address, as in a pod, so that PostgreSQL is reachable only by MLflow. The last
    block to end stops them.

    Args:
        client: The container engine.
        folder: The folder of the database and the artifacts.

    Raises:
        EngineError: One of the containers does not start.
    """
    writable_folder(folder)
    pair = _Pair(client, folder)
    with (folder / "users").open("w") as users:  # locked by every block that uses the containers
        try:
            with _one_at_a_time(folder):
                server = pair.start()
                fcntl.flock(users, fcntl.LOCK_SH)
            yield server
        finally:
            with _one_at_a_time(folder), suppress(BlockingIOError):  # another block uses the containers
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                pair.stop()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Prevent other processes from starting or stopping the containers at the same time."""
    with (folder / "changes").open("w") as changes:
        fcntl.flock(changes, fcntl.LOCK_EX)
        yield


class _Pair:
    """The containers of one folder."""

    def __init__(self, client: Engine, folder: Path) -> None:
        self._client = client
        self._folder = folder.resolve()
        key = hashlib.sha256(str(self._folder).encode()).hexdigest()[:8]
        self._network = f"evasion-{key}"
        self._postgres = f"evasion-postgres-{key}"
        self._mlflow = f"evasion-mlflow-{key}"

    def start(self) -> Server:
        containers = [self._container(name) for name in (self._postgres, self._mlflow)]
        if not all(container and container.status == "running" for container in containers):
            self.stop()  # remove what a killed run has left
            with engine_errors("Could not start the MLflow server"):
                self._start()
        published = self._client.containers.get(self._postgres).ports[f"{PORT}/tcp"][0]
        server = Server(f"http://127.0.0.1:{published['HostPort']}", f"http://{HOST}:{PORT}", self._network)
        self._wait_for(f"{server.address}/health")
        return server

    def _start(self) -> None:
        self._client.networks.create(self._network, driver="bridge")
        # PostgreSQL requires its user to have a name.
        names = self._folder / "passwd"
        names.write_text("mlflow:x:{}:{}::/tmp:/bin/false\n".format(*user()), encoding="utf-8")
        self._run(
            "postgres",
            self._postgres,
            network=self._network,
            networking_config={self._network: self._client.api.create_endpoint_config(aliases=[HOST])},
            tmpfs={"/tmp": ""},  # noqa: S108 - in the container
            ports={f"{PORT}/tcp": ("127.0.0.1", None)},
            volumes=[
                f"{writable_folder(self._folder / 'postgres')}:/var/lib/postgresql/data",
                f"{names}:/etc/passwd:ro",
            ],
        )
        # MLflow retries until PostgreSQL responds.
        self._run(
            "mlflow",
            self._mlflow,
            [
                "--backend-store-uri=postgresql+psycopg://mlflow@127.0.0.1/postgres",
                "--artifacts-destination=/artifacts",
                f"--allowed-hosts={HOST}:{PORT},127.0.0.1:*,localhost:*",
                "--workers=1",
            ],
            network_mode=f"container:{self._postgres}",
            # MLflow stores uploads in its temporary folder first.
            volumes=[f"{writable_folder(self._folder / name)}:/{name}" for name in ("artifacts", "tmp")],
        )

    def _run(self, target: str, name: str, command: list[str] | None = None, **settings: Any) -> None:
        self._client.containers.run(image(target), command, name=name, detach=True, **confinement(), **settings)

    def stop(self) -> None:
        with engine_errors("Could not stop the MLflow server"):
            for name in (self._mlflow, self._postgres):
                if (container := self._container(name)) is not None:
                    container.stop(timeout=30 if name == self._postgres else 5)
                    container.remove(force=True)
            for network in self._client.networks.list(names=[f"^{self._network}$"]):
                network.remove()

    def _container(self, name: str) -> Any:
        import docker

        try:
            return self._client.containers.get(name)
        except docker.errors.NotFound:
            return None

    def _wait_for(self, url: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not _responds(url):
            for name in (self._postgres, self._mlflow):
                container = self._client.containers.get(name)
                if container.status != "running" or time.monotonic() > deadline:
                    log = container.logs(tail=15).decode(errors="replace").strip()
                    raise EngineError(f"The MLflow server does not start. Last lines of {name}:\n{log}")
            time.sleep(0.2)


def _responds(url: str) -> bool:
    try:
        # Without a proxy: the address is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as response:
            return bool(response.status == HTTPStatus.OK)
    except (urllib.error.URLError, OSError):
        return False
