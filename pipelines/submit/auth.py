"""Authentication with a Kubeflow host: by a token, which is renewed when it has expired, or by a cookie."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

# The token for the audience pipelines.kubeflow.org that Kubernetes renews in a pod; the path is that of kfp's client.
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105 - a path
TOKEN_FILE_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
TOKEN_TIMEOUT = 60  # seconds for a command to print a token


class AuthenticationError(RuntimeError):
    """No token is available."""


class Identity:
    """The credentials of requests.

    Args:
        token_source: Returns a currently valid token; None to send none.
        cookie: The value of the header Cookie, or blank.
    """

    def __init__(self, token_source: Callable[[], str] | None = None, cookie: str = "") -> None:
        self._token_source = token_source
        self._cookie = cookie
        self._token = ""

    def headers(self) -> dict[str, str]:
        """Return the HTTP headers with the credentials.

        Raises:
            AuthenticationError: No token is available.
        """
        if self._token_source and not self._token:
            self._token = self._token_source()
        return {
            **({"Cookie": self._cookie} if self._cookie else {}),
            **({"authorization": f"Bearer {self._token}"} if self._token else {}),
        }

    def renewed(self) -> bool:
        """Renew the token, and return whether it has changed.

        Raises:
            AuthenticationError: No token is available.
        """
        before = self._token
        self._token = self._token_source() if self._token_source else ""
        return self._token != before


def identity(*, token: str = "", token_command: str = "", cookie: str = "") -> Identity:
    """Return the identity: with the command's token, the given token, the token of the pod, or a cookie alone."""
    file = Path(os.environ.get(TOKEN_FILE_VARIABLE) or TOKEN_FILE)
    if token_command:
        return Identity(lambda: _command_output(token_command), cookie)
    if token:
        return Identity(lambda: token, cookie)
    if not cookie and file.is_file():
        return Identity(lambda: _read_token(file))
    return Identity(None, cookie)


def in_cluster() -> bool:
    """Return whether this process runs in a pod."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def own_namespace() -> str:
    """Return the namespace of this pod; blank outside of a pod."""
    file = Path(NAMESPACE_FILE)
    return file.read_text().strip() if file.is_file() else ""


def _read_token(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise AuthenticationError(f"Could not read the token of this pod: {error}") from error


def _command_output(command: str) -> str:
    """Return the output of a command."""
    try:
        result = subprocess.run(  # noqa: S603 - the user's own command
            shlex.split(command), capture_output=True, text=True, timeout=TOKEN_TIMEOUT, stdin=subprocess.DEVNULL
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise AuthenticationError(f"Could not run the token command: {error}. Set --token-command.") from error
    if result.returncode or not result.stdout.strip():
        reason = result.stderr.strip() or "it printed nothing"
        raise AuthenticationError(
            f"The token command exited with status {result.returncode}: {reason}. Set --token-command."
        )
    return result.stdout.strip()
