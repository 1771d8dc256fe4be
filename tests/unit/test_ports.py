import socket
import socketserver

import pytest
from ports import reserved_port


def test_a_reserved_port_is_refused_to_others_and_open_to_the_server_that_it_is_for():
    class Server(socketserver.TCPServer):
        allow_reuse_address = True

    with reserved_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with (
            Server(("127.0.0.1", port), socketserver.BaseRequestHandler),
            socket.create_connection(("127.0.0.1", port)),
        ):
            pass
