"""Requests to the Hugging Face Hub: repeated for some seconds if it is busy, and the kinds of its errors."""

import inspect
import logging
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ld3m.errors import one_line

T = TypeVar("T")
WAITS = (1, 2, 4)
"""Seconds before each further attempt, unless the Hub asks for others."""
PATIENCE = 7.0
"""Seconds after which no further attempt is made."""
RETRIES = 2
"""Further attempts of the client itself, for requests that it repeats: after one second, and after two."""
REACHED_WITHIN = 5.0
"""Seconds in which the Hub must answer anything at all."""
CACHE_MISSES = ("OfflineModeIsEnabled", "LocalEntryNotFoundError")
"""Errors of the clients if they may not ask, and have no copy."""
TRANSIENT = (408, 409, 412, 425, 429, 500, 502, 503, 504)
"""Status codes after which another attempt may succeed; 409 and 412: another commit came between."""


@contextmanager
def asking() -> Iterator[None]:
    """Within it the Hub's clients give up soon: at once if it cannot be reached, after seconds if it is busy.

    What they have in their caches is used then, and a line says so. By themselves they try for half a minute each, and
    print two lines per attempt.

    Raises:
        ConnectionError: with the reason, if the Hub cannot be reached and what runs inside fails without it.
    """
    from huggingface_hub import constants, utils

    if constants.HF_HUB_OFFLINE:
        yield
        return
    names = [name for name in ("http_backoff", "http_stream_backoff") if hasattr(utils, name)]
    attempts = [inspect.unwrap(getattr(utils, name)) for name in names]
    defaults = [dict(each.__kwdefaults__) for each in attempts]
    flags = [constants, *([sys.modules["datasets.config"]] if "datasets.config" in sys.modules else [])]
    offline = [vars(each)["HF_HUB_OFFLINE"] for each in flags]
    client = logging.getLogger("huggingface_hub.utils._http")
    client.addFilter(brief := _Brief())
    reason = _out_of_reach(constants.ENDPOINT)
    try:
        for each in attempts:
            each.__kwdefaults__["max_retries"] = RETRIES
        for module in flags if reason else []:
            vars(module)["HF_HUB_OFFLINE"] = True
        yield
        if reason:
            _say(f"the Hub cannot be reached ({reason}); what was fetched from it before is used")
    except Exception as error:
        if reason and is_of_the_network(error):
            raise ConnectionError(reason) from None
        raise
    finally:
        client.removeFilter(brief)
        for each, before in zip(attempts, defaults, strict=True):
            each.__kwdefaults__ = before
        for module, flag in zip(flags, offline, strict=True):
            vars(module)["HF_HUB_OFFLINE"] = flag


class _Brief(logging.Filter):
    """Lets the client's warnings of its attempts be one line."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING and not self.said:
            self.said = True
            _say(f"the Hub: {' '.join(record.getMessage().split())[:200]}; trying again")
        return record.levelno > logging.WARNING


def _out_of_reach(endpoint: str) -> str | None:
    """Why no connection to the Hub can be made; None if it answers anything."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=REACHED_WITHIN).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if "certificate" in str(reason).lower():  # the clients may know others
            return None
        return f"{endpoint}: {getattr(reason, 'strerror', None) or reason}"
    return None


def _say(line: str) -> None:
    print(f"ld3m: {line}", file=sys.stderr, flush=True)


def patiently(call: Callable[[], T], offline: bool = True) -> T:
    """The result of a call, which is repeated if the Hub was busy or a connection broke.

    Args:
        call: makes requests of the Hub.
        offline: whether to repeat it also if no connection could be made.
    """
    began, said = time.monotonic(), False
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            status, headers = status_of(error)
            connecting = type(error).__name__ in ("ConnectError", "ConnectTimeout", "ConnectionError")
            broken = status is None and is_of_the_network(error) and (offline or not connecting)
            asked = headers.get("Retry-After", "")
            seconds = float(asked) if asked.isdigit() else wait
            late = time.monotonic() + seconds > began + PATIENCE
            if (status not in TRANSIENT and not broken) or late or type(error).__name__ in CACHE_MISSES:
                raise
            if not said:
                _say(f"the Hub: {status or one_line(error)}; trying again for {PATIENCE:g} s")
            said = True
            time.sleep(seconds)
    return call()


def status_of(error: Exception) -> tuple[int | None, Any]:
    """The HTTP status code of an error, None if it has none, and the headers of its response."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None), getattr(response, "headers", None) or {}


def is_of_the_network(error: Exception) -> bool:
    """Whether an error is one of a connection: it comes from an HTTP library that the client uses or used."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    ours = kinds & {"httpx", "httpx2", "httpcore", "requests", "urllib3"}
    return bool(ours) or isinstance(error, ConnectionError) or type(error).__name__ in CACHE_MISSES
