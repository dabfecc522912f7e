"""Requests to the Hugging Face Hub: repeated for some seconds if it is busy, not made if it is out of reach.

The clients alone try for half a minute and more, wait as long as they are asked to, and print two lines per attempt.
"""

import functools
import inspect
import logging
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, TypeVar

from ld3m.errors import one_line

T = TypeVar("T")
WAITS = (1, 2, 4)
"""Seconds before each further attempt, unless the Hub asks for others."""
PATIENCE = 8.0
"""Seconds after the first failure in which further attempts are made."""
REACHED_WITHIN = 4.0
"""Seconds in which the Hub must answer anything at all."""
KEPT = 30.0
"""Seconds for which what was found of the Hub stands."""
CACHE_MISSES = ("OfflineModeIsEnabled", "LocalEntryNotFoundError")
"""Errors of the clients if they may not ask, and have no copy."""
TRANSIENT = (408, 409, 412, 425, 429, 500, 502, 503, 504)
"""Status codes after which another attempt may succeed; 409 and 412: another commit came between."""


def ask(call: Callable[[], T]) -> T:
    """What the Hub's clients return: from their caches if it cannot be reached, after some attempts if it is busy.

    Args:
        call: makes requests of the Hub by its clients.

    Raises:
        ConnectionError: with the reason, if the Hub cannot be reached and the call fails without it.
    """
    with asking():
        return patiently(call)


@contextmanager
def asking() -> Iterator[None]:
    """Within it the Hub's clients make one attempt, or none if it cannot be reached; `patiently` makes the others.

    What they have in their caches is used then, and a line says so.

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
    # Before version 1, a connection of the Hub's client stays offline if it was when it was made.
    forget_connections = getattr(utils, "reset_sessions", lambda: None)
    client = logging.getLogger("huggingface_hub.utils._http")
    client.addFilter(_is_an_error)
    reason = out_of_reach(constants.ENDPOINT, int(time.monotonic() / KEPT))
    try:
        for each in attempts:
            each.__kwdefaults__["max_retries"] = 0
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
        client.removeFilter(_is_an_error)
        for each, before in zip(attempts, defaults, strict=True):
            each.__kwdefaults__ = before
        for module, flag in zip(flags, offline, strict=True):
            vars(module)["HF_HUB_OFFLINE"] = flag
        if reason:
            forget_connections()


def _is_an_error(record: logging.LogRecord) -> bool:
    """Drops the client's warnings of each attempt: `patiently` says it on one line."""
    return record.levelno > logging.WARNING


@functools.cache  # a command asks several times
def out_of_reach(endpoint: str, period: int = 0) -> str | None:
    """Why no connection to the Hub can be made; None if it answers anything.

    Args:
        endpoint: its address.
        period: the number of `KEPT` seconds that have passed, in which one answer stands.
    """
    found: list[str | None] = []
    # Name servers and several addresses that do not answer each have their time: a thread bounds them all.
    probe = Thread(target=lambda: found.append(_probe(endpoint)), daemon=True)
    probe.start()
    probe.join(REACHED_WITHIN)
    return found[0] if found else f"{endpoint}: no answer for {REACHED_WITHIN:g} s"


def _probe(endpoint: str) -> str | None:
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=REACHED_WITHIN + 1).close()
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


def patiently(call: Callable[[], T]) -> T:
    """The result of a call, which is repeated if the Hub was busy or a connection broke; not if none could be made."""
    until = None
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            status, headers = status_of(error)
            name = type(error).__name__
            waited = "Timeout" in name or name in ("ConnectError", "ConnectionError", *CACHE_MISSES)
            broken = status is None and is_of_the_network(error) and not waited
            asked = headers.get("Retry-After", "")
            seconds = float(asked) if asked.isdigit() else wait
            now = time.monotonic()
            if (status not in TRANSIENT and not broken) or now + seconds > (until or now + PATIENCE):
                raise
            if until is None:
                _say(f"the Hub: {status or one_line(error)}; trying again for {PATIENCE:g} s")
                until = now + PATIENCE
            time.sleep(seconds)
    return call()


def explained(error: Exception) -> str:
    """What a request failed of, and the way on, as the end of one of our lines."""
    from huggingface_hub import constants

    status, headers = status_of(error)
    if status in TRANSIENT:
        asked = headers.get("Retry-After", "")
        wait = f", and asks to wait {asked} s" if asked.isdigit() else ""
        return f"{constants.ENDPOINT} keeps answering {status}{wait}; the same command tries again"
    if status is None and is_of_the_network(error):
        reason = one_line(error).removeprefix("ConnectionError: ")
        return f"{reason}; repeat it with a network, or set HF_ENDPOINT to a mirror of the Hub"
    return one_line(error)


def status_of(error: Exception) -> tuple[int | None, Any]:
    """The HTTP status code of an error or of what caused it, None if there is none, and its response's headers."""
    cause: BaseException | None = error
    while cause and getattr(cause, "response", None) is None:
        cause = cause.__cause__ or cause.__context__
    response = getattr(cause, "response", None)
    return getattr(response, "status_code", None), getattr(response, "headers", None) or {}


def is_of_the_network(error: BaseException) -> bool:
    """Whether an error, or its stated cause, is one of a connection: of an HTTP library that the client uses."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    ours = kinds & {"httpx", "httpx2", "httpcore", "requests", "urllib3"}
    direct = bool(ours) or isinstance(error, ConnectionError) or type(error).__name__ in CACHE_MISSES
    return direct or (error.__cause__ is not None and is_of_the_network(error.__cause__))
