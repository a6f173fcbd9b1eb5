"""Whether an address can be listened at: granian shares ports, and would not notice that another one has it."""

from __future__ import annotations

import socket

from bridge.config import Address


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
    if address.port == 0:
        return
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except PermissionError:
            raise PortError(f"{setting}: port {address.port} needs root; choose one from 1024 up") from None
        except OSError as error:
            raise PortError(
                f"{setting}: {address} cannot be used: {(error.strerror or str(error)).lower()}; "
                f"set {setting} to another address or port, or stop what listens there"
            ) from None
