"""Requests to the Hugging Face Hub: repeated if it was busy or a connection broke, and the kinds of its errors."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from ld3m.errors import one_line

T = TypeVar("T")
WAITS = (1, 2, 4, 8, 16)
"""Seconds before each further attempt, unless the Hub asks for others."""
TRANSIENT = (408, 409, 412, 425, 429, 500, 502, 503, 504)
"""Status codes after which another attempt may succeed; 409 and 412: another commit came between."""


def patiently(call: Callable[[], T], offline: bool = True) -> T:
    """The result of a call, which is repeated if the Hub was busy or a connection broke.

    Args:
        call: makes requests of the Hub.
        offline: whether to repeat it also if no connection could be made.
    """
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            status, headers = status_of(error)
            connecting = type(error).__name__ in ("ConnectError", "ConnectTimeout", "ConnectionError")
            broken = status is None and is_of_the_network(error) and (offline or not connecting)
            if status not in TRANSIENT and not broken:
                raise
            asked = headers.get("Retry-After", "")
            seconds = min(float(asked), 300) if asked.isdigit() else wait
            print(f"the Hub: {status or one_line(error)}; again in {seconds:g} s", flush=True)
            time.sleep(seconds)
    return call()


def status_of(error: Exception) -> tuple[int | None, Any]:
    """The HTTP status code of an error, None if it has none, and the headers of its response."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None), getattr(response, "headers", None) or {}


def is_of_the_network(error: Exception) -> bool:
    """Whether an error is one of a connection: it comes from an HTTP library that the client uses or used."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(kinds & {"httpx", "httpx2", "httpcore", "requests", "urllib3"}) or isinstance(error, ConnectionError)
