"""Asker: a plain HTTP client that sends one request at a time and reads the answer whole, or event by event.

The load generator has a client of its own (client.py) that costs less CPU per request and drops the answers.
"""

import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse

HOST = "127.0.0.1"
TIMEOUT_S = 60.0
HEADERS = {"content-type": "application/json"}
REFUSED_BYTES = 200  # of the body of an unexpected answer, in the message of its error


class Asker:
    """One keep-alive connection to a server on this machine. It reconnects after an error."""

    def __init__(self, port: int, timeout_s: float = TIMEOUT_S) -> None:
        self._connection = HTTPConnection(HOST, port, timeout=timeout_s)

    def ask(self, path: str, body: bytes) -> bytes:
        """The body of the answer to a POST; raises OSError without a server, HTTPException for a status but 200."""
        status, content = self.answer(path, body)
        if status != 200:
            raise HTTPException(f"{status} {content[:REFUSED_BYTES].decode(errors='replace')}")
        return content

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body, whatever the status; raises OSError or HTTPException where no whole answer came."""
        try:
            response = self._respond(path, body)
            return response.status, response.read()
        except (OSError, HTTPException):
            self.close()
            raise

    def get(self, path: str) -> bytes:
        """The body of the answer to a GET; raises as `ask` does."""
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise HTTPException(f"{response.status} {content[:REFUSED_BYTES].decode(errors='replace')}")
        return content

    def events(self, path: str, body: bytes) -> Iterator[bytes]:
        """The data of each server-sent event as it comes; raises OSError, and HTTPException for a status but 200.

        A caller that stops early drops the connection with `close`.
        """
        response = self._respond(path, body)
        if response.status != 200:
            raise HTTPException(f"{response.status} {response.read(REFUSED_BYTES).decode(errors='replace')}")
        for line in response:
            if line.startswith(b"data:"):
                yield line[5:].strip()

    def abort(self) -> None:
        """Drop the connection from another thread: whoever reads from it gets an OSError or HTTPException."""
        if (sock := self._connection.sock) is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # it was closed meanwhile
                return

    def close(self) -> None:
        self._connection.close()

    def _respond(self, path: str, body: bytes) -> HTTPResponse:
        self._connection.request("POST", path, body, HEADERS)
        return self._connection.getresponse()
