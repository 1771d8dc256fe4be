"""As whom a Kubeflow host is asked: by a token, which is taken anew when it has expired, or by a cookie."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

# Where a pod finds the token that Kubernetes renews, for the audience pipelines.kubeflow.org: as in kfp's client.
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105 - a path
TOKEN_FILE_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
PATIENCE = 60  # seconds for a command to print a token


class AuthenticationError(RuntimeError):
    """No token can be had, or the host does not take it."""


class Identity:
    """The headers that say who asks.

    Args:
        source: Returns a token that is valid now; None where there is none to send.
        cookie: The value of the header Cookie, or blank.
    """

    def __init__(self, source: Callable[[], str] | None = None, cookie: str = "") -> None:
        self._source = source
        self._cookie = cookie
        self._token = ""

    def headers(self) -> dict[str, str]:
        """Return the headers.

        Raises:
            AuthenticationError: There is no token.
        """
        if self._source and not self._token:
            self._token = self._source()
        return {
            **({"Cookie": self._cookie} if self._cookie else {}),
            **({"authorization": f"Bearer {self._token}"} if self._token else {}),
        }

    def renewed(self) -> bool:
        """Take a token again, and tell whether it is another one.

        Raises:
            AuthenticationError: There is none.
        """
        before = self._token
        self._token = self._source() if self._source else ""
        return self._token != before


def identity(*, token: str = "", token_command: str = "", cookie: str = "") -> Identity:
    """Return who asks: by the command's token, the one given, that of the pod, or by a cookie alone."""
    file = Path(os.environ.get(TOKEN_FILE_VARIABLE) or TOKEN_FILE)
    if token_command:
        return Identity(lambda: _printed(token_command), cookie)
    if token:
        return Identity(lambda: token, cookie)
    if not cookie and file.is_file():
        return Identity(lambda: _read(file))
    return Identity(None, cookie)


def in_cluster() -> bool:
    """Tell whether this is a pod."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def own_namespace() -> str:
    """Return the namespace of this pod; outside of one, nothing."""
    file = Path(NAMESPACE_FILE)
    return file.read_text().strip() if file.is_file() else ""


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise AuthenticationError(f"The token of this pod cannot be read: {error}") from error


def _printed(command: str) -> str:
    """Return what a command prints."""
    try:
        result = subprocess.run(  # noqa: S603 - the user's own command
            shlex.split(command), capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise AuthenticationError(f"The token command does not run: {error}. Set --token-command.") from error
    if result.returncode or not result.stdout.strip():
        said = result.stderr.strip() or "it printed nothing"
        raise AuthenticationError(f"The token command ended with {result.returncode}: {said}. Set --token-command.")
    return result.stdout.strip()
