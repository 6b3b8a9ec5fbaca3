"""A file from the web within a deadline for all of it, however slowly a server sends its headers or its bytes."""

import contextlib
import http.client
import os
import socket
import threading
import time
import urllib.request
from typing import Any

AGENT = "simvlm_jax data preparation"


def fetched(address: str, seconds: float, most: int) -> bytes:
    """The bytes at an http or https address.

    Raises:
      OverflowError: there are more than `most`. TimeoutError: not all came in time. OSError, ValueError: the rest.
    """
    until = time.monotonic() + seconds
    request = urllib.request.Request(address, headers={"User-Agent": AGENT})
    with contextlib.ExitStack() as after, _opener(until, after).open(request, timeout=seconds) as answer:
        if answer.length is not None and answer.length > most:
            raise OverflowError(f"{answer.length:,} bytes")
        data = bytearray()
        while chunk := answer.read1(2**16):
            data += chunk
            if len(data) > most:
                raise OverflowError(f"more than {most:,} bytes")
            if time.monotonic() > until:
                raise TimeoutError(f"not all of {address} came in {seconds:g} s")
        if answer.length or time.monotonic() > until:  # of what was announced, this much has not come
            raise TimeoutError(f"not all of {address} came in {seconds:g} s")
        return bytes(data)


def _opener(until: float, after: contextlib.ExitStack) -> urllib.request.OpenerDirector:
    """Opens http and https, follows redirects, and hangs up on every connection at `until`."""

    def limited(kind: Any) -> Any:
        class Limited(kind):
            def __init__(self, *args: Any, **kwargs: Any):
                super().__init__(*args, **kwargs)

                def connected(address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
                    made = _connected(address, until)
                    after.enter_context(_hang_up(made, until))
                    return made

                self._create_connection = connected

        return Limited

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, req: Any) -> Any:
            return self.do_open(limited(http.client.HTTPConnection), req)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, req: Any) -> Any:
            return self.do_open(limited(http.client.HTTPSConnection), req)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        Plain(),
        Secure(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _connected(address: tuple[str, int], until: float) -> socket.socket:
    """A connection to one of the addresses of a name, tried one after the other until the deadline."""
    error: Exception = OSError(f"{address[0]} has no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{address[0]} did not answer in time")
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(left)
            made.connect(place)
            return made
        except OSError as e:
            made.close()
            error = e
    raise error


@contextlib.contextmanager
def _hang_up(connection: socket.socket, until: float) -> Any:
    """Shuts a connection down at a time, so that whoever waits for it hears the end."""
    own = socket.socket(fileno=os.dup(connection.fileno()))  # TLS takes the other one over

    def end() -> None:
        with contextlib.suppress(OSError):
            own.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(until - time.monotonic(), 0), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        own.close()
