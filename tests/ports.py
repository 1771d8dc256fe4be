"""Ports of this machine for the servers that tests start."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a free port of 127.0.0.1 that this machine gives to nobody else for as long as the block lasts.

    A port that is chosen and let go belongs to whoever asks next, and a server needs seconds until it listens. Bound
    and never listening, a socket keeps the port from all who ask for any port; a server that is given this one can
    still listen there if it sets SO_REUSEADDR, as asyncio and Go do.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield reservation.getsockname()[1]
