"""One listening address for several processes: taken once, by the parent, and shared out by the kernel.

Each worker listens on a socket of its own, bound to the same address with SO_REUSEPORT, and the kernel deals new
connections out by a hash of who calls. A socket that all workers share goes to whoever wakes first, and under a burst
that is nearly always the same one. Measured with uvicorn on uvloop, two cores, 64 connections at once, the share of
each worker: one socket for two 52 and 12, for four 43, 19, 2 and 0; sockets of their own 35 and 29, and 20, 17, 14 and
13. An answer may stream for minutes, so what was dealt out badly stays so.

The parent holds the address with a socket that is bound and never listens. It is bound without SO_REUSEPORT, so that
an address at which anybody listens is refused, another gateway of ours included; the option is set afterwards.
"""

from __future__ import annotations

import errno
import socket
from typing import Final, Self

_WORDS: Final = {
    errno.EADDRINUSE: "is taken by another program. Choose another port with --port or GATEWAY_PORT.",
    errno.EACCES: "may not be used by this user. Choose a port from 1024 on with --port or GATEWAY_PORT.",
    errno.EADDRNOTAVAIL: "is no address of this machine. Choose another with --host or GATEWAY_HOST.",
}


class AddressError(Exception):
    """The address cannot be listened on; the message says why and what to choose instead."""


class Address:
    """A host and a port that are ours until :meth:`close`."""

    def __init__(self, host: str, port: int) -> None:
        """Takes every address that the host stands for; port 0 takes a free one. Raises AddressError."""
        self._held: list[socket.socket] = []
        try:
            self._take(_addresses(host, port), port)
        except OSError as error:
            self.close()
            said = _WORDS.get(error.errno or 0, f"cannot be listened on: {error.strerror or error}.")
            raise AddressError(f"{_shown(host, port)} {said}") from None
        for held in self._held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.url = f"http://{_shown(host, self.port)}"

    def _take(self, addresses: list[tuple[int, str]], port: int) -> None:
        for family, name in addresses:
            try:
                self._held.append(_bound(family, (name, self.port if self._held else port)))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or ((family, name) == addresses[-1] and not self._held):
                    raise  # a name may stand for addresses that this machine does not have

    @property
    def port(self) -> int:
        return int(self._held[0].getsockname()[1])

    def sockets(self) -> list[socket.socket]:
        """New sockets at this address for one worker, which calls ``listen`` on them once it is ready."""
        return [_bound(held.family, held.getsockname()[:2], shared=True) for held in self._held]

    def close(self) -> None:
        for held in self._held:
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _addresses(host: str, port: int) -> list[tuple[int, str]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((int(family), str(address[0])) for family, _, _, _, address in found))


def _bound(family: int, address: tuple[str, int], *, shared: bool = False) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
