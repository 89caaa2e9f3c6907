"""Messages over a socket, each behind its length: the engine's end, which waits."""

from __future__ import annotations

import socket
import struct

__all__ = ["HEADER", "Channel", "framed"]

HEADER = struct.Struct("!I")
"""What is in front of a message: how many bytes it has."""

_WANTED_BUFFER = 1 << 20  # bytes; a step of a full batch takes some ten thousand


def framed(data: bytes) -> bytes:
    """Returns a message with its length in front."""
    return HEADER.pack(len(data)) + data


class Channel:
    """Sends and receives messages. One thread may send while another one receives.

    Args:
        connection: connected to the other process.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WANTED_BUFFER)
        self._connection = connection
        self._reader = connection.makefile("rb")

    def send(self, data: bytes) -> None:
        """Sends a message; waits where the other process is behind.

        Raises:
            OSError: the other process is gone.
        """
        self._connection.sendall(framed(data))

    def receive(self) -> bytes | None:
        """Waits for a message and returns it; None where the other process is gone."""
        try:
            header = self._reader.read(HEADER.size)
            if len(header) < HEADER.size:
                return None
            (size,) = HEADER.unpack(header)
            data = self._reader.read(size)
        except OSError:
            return None
        return data if len(data) == size else None
