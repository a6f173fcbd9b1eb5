"""Sockets that listen: whether an address is free, and connections that nobody can hold by not reading."""

from __future__ import annotations

import socket

from bridge.config import Address

#: Connections that wait while the receivers have as many as they take, or are started anew.
BACKLOG = 4096
#: Seconds that the other end may leave what was sent to it unread.
READER_PATIENCE = 10
#: Bytes of answers that the kernel keeps for one connection; without a bound it is megabytes.
UNREAD = 64 * 2**10


class PortError(Exception):
    """An address cannot be listened at; the message says why and what to do."""


def check_free(address: Address, setting: str) -> None:
    """Look whether somebody listens there already.

    Args:
        address: Where to listen; port 0 is always free.
        setting: The setting that it stands in.

    Raises:
        PortError: It is taken, or not this machine's, or needs root.
    """
    if address.port != 0:
        listen(address, setting).close()


def listen(address: Address, setting: str) -> socket.socket:
    """A socket that listens there.

    Args:
        address: Where to listen.
        setting: The setting that it stands in.

    Raises:
        PortError: It is taken, or not this machine's, or needs root.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except PermissionError:
        listener.close()
        raise PortError(f"{setting}: port {address.port} needs root; choose one from 1024 up") from None
    except OSError as error:
        listener.close()
        raise PortError(
            f"{setting}: {address} cannot be used: {(error.strerror or str(error)).lower()}; "
            f"set {setting} to another address or port, or stop what listens there"
        ) from None
    return listener


def bound(listener: socket.socket) -> None:
    """Have the kernel end connections whose other end does not read, and keep little for them meanwhile.

    The receivers could not: what they have sent is the kernel's. Connections have this from their listener (tcp(7)).
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, READER_PATIENCE * 1000)
