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
                create = self._create_connection

                def connected(*args: Any, **kwargs: Any) -> socket.socket:
                    made = create(*args, **kwargs)
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
