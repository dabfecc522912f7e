"""How long the Hub is asked: not at all if it cannot be reached, for seconds if it is busy; always on one line."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from conftest import Outcome
from huggingface_hub import constants
from huggingface_hub.utils import http_backoff

from ld3m.machine import hub

OUT_OF_REACH = f"ConnectionError: {constants.ENDPOINT}: Connection refused"


class BusyError(Exception):
    """What the client raises if the Hub answers with a status code."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status, headers=headers)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that were slept; time passes in no other way."""
    slept: list[float] = []
    clock = SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept))
    monkeypatch.setattr(hub, "time", clock)
    return slept


@pytest.mark.parametrize(
    ("error", "slept"),
    [
        (BusyError(503), [1, 2, 4]),
        (ConnectionResetError("reset"), [1, 2, 4]),
        (BusyError(429, **{"Retry-After": "3"}), [3, 3]),
        (BusyError(429, **{"Retry-After": "600"}), []),
        (BusyError(404), []),
        (KeyError("ours"), []),
    ],
)
def test_a_busy_hub_is_asked_for_seven_seconds_on_one_line(
    error: Exception, slept: list[float], clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    def ask() -> None:
        raise error

    with pytest.raises(type(error)):
        hub.patiently(ask)
    assert clock == slept
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(slept)
    assert all(line.startswith("ld3m: the Hub: ") and line.endswith("trying again for 7 s") for line in lines)


def test_the_clients_are_as_they_were_afterwards() -> None:
    before = dict(http_backoff.__kwdefaults__), constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    assert before[0]["max_retries"] > hub.RETRIES
    with hub.asking():
        assert http_backoff.__kwdefaults__["max_retries"] == hub.RETRIES
        assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (True, True)  # nobody listens in tests
    assert (dict(http_backoff.__kwdefaults__), constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == before


def test_the_clients_warnings_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *_, **__: SimpleNamespace(close=lambda: None))
    with hub.asking():
        for attempt in range(3):
            logging.getLogger("huggingface_hub.utils._http").warning(f"HTTP Error 503\nRetrying [Retry {attempt}/2]")
    assert capsys.readouterr().err == "ld3m: the Hub: HTTP Error 503 Retrying [Retry 0/2]; trying again\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("evaluate", "me/x"), f"me/x: cannot be fetched from the Hub ({OUT_OF_REACH})"),
        (
            ("distill", "quickstart", "data.source=hub:me/x"),
            f"data.source: cannot load me/x from the Hub ({OUT_OF_REACH})",
        ),
        (("distill", "quickstart", "prior.source=hub:me/x"), f"prior.source: cannot fetch hub:me/x: {OUT_OF_REACH}"),
    ],
    ids=["set", "data", "prior"],
)
def test_a_hub_out_of_reach_is_said_at_once(
    ld3m: Callable[..., Outcome], tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    began = time.monotonic()
    assert ld3m(*arguments) == Outcome(2, "", f"ld3m: {line}\n")
    assert time.monotonic() - began < 10
