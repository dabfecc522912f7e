"""How long the Hub is asked: not at all if it cannot be reached, for seconds if it is busy; always on one line."""

import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import datasets
import pytest
from conftest import Outcome
from hub_server import Fault, serving
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import http_backoff

from ld3m.machine import hub

OUT_OF_REACH = (
    f"{constants.ENDPOINT}: Connection refused; repeat it with a network, or set HF_ENDPOINT to a mirror of the Hub"
)


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
        (TimeoutError("timed out"), []),
        (ConnectionError("refused"), []),
        (BusyError(404), []),
        (KeyError("ours"), []),
    ],
)
def test_a_busy_hub_is_asked_for_some_seconds_on_one_line(
    error: Exception, slept: list[float], clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    def ask() -> None:
        raise error

    with pytest.raises(type(error)):
        hub.patiently(ask)
    assert clock == slept
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(slept)
    assert all(line.startswith("ld3m: the Hub: ") and line.endswith("trying again for 8 s") for line in lines)


@pytest.mark.parametrize("offline", [True, False])
def test_the_clients_are_as_they_were_afterwards(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "out_of_reach", lambda *_: "no network" if offline else None)
    before = dict(http_backoff.__kwdefaults__), constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    with hub.asking():
        assert http_backoff.__kwdefaults__["max_retries"] == 0
        assert (offline, offline) == (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    assert (dict(http_backoff.__kwdefaults__), constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == before


def test_a_hub_that_was_out_of_reach_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: older clients keep a connection, and with it that it was made offline."""
    with monkeypatch.context() as patch:
        patch.setattr(hub, "out_of_reach", lambda *_: "no network")
        with pytest.raises(ConnectionError, match="no network"):
            hub.ask(lambda: HfApi().whoami(token="hf_any"))
    with serving() as server:
        with pytest.raises(HfHubHTTPError):
            hub.ask(lambda: HfApi().model_info("me/none"))
        assert server.asked("^GET /api/models/me/none")


@pytest.mark.parametrize(
    ("status", "headers", "line"),
    [
        (503, {}, "keeps answering 503; the same command tries again"),
        (429, {"Retry-After": "300"}, "keeps answering 429, and asks to wait 300 s; the same command tries again"),
    ],
)
def test_the_clients_own_patience_is_not_added(
    status: int,
    headers: dict[str, str],
    line: str,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The real client waits as long as it is asked to, on two lines, and repeats five times."""
    with serving() as server:
        server.faults = [Fault("GET", status, times=99, headers=headers)]
        with pytest.raises(HfHubHTTPError) as raised:
            hub.ask(lambda: list(HfApi().list_repo_tree("me/prior")))
    assert hub.explained(raised.value) == f"{constants.ENDPOINT} {line}"
    assert clock == ([1, 2, 4] if not headers else [])
    assert len(server.asked("^GET")) == 1 + len(clock)
    assert capsys.readouterr().err == (f"ld3m: the Hub: {status}; trying again for 8 s\n" if clock else "")
    assert caplog.messages == []


def test_an_address_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "REACHED_WITHIN", 0.2)
    hub.out_of_reach.cache_clear()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        assert hub.out_of_reach(endpoint) == f"{endpoint}: no answer for 0.2 s"
        assert hub.out_of_reach(endpoint) == f"{endpoint}: no answer for 0.2 s"
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("evaluate", "me/x"), f"me/x: cannot be fetched from the Hub: {OUT_OF_REACH}"),
        (("render", "me/x"), f"me/x: cannot be fetched from the Hub: {OUT_OF_REACH}"),
        (
            ("distill", "quickstart", "data.source=hub:me/x"),
            f"data.source: cannot load me/x from the Hub: {OUT_OF_REACH}",
        ),
        (("distill", "quickstart", "prior.source=hub:me/x"), f"prior.source: cannot fetch hub:me/x: {OUT_OF_REACH}"),
    ],
    ids=["set", "latents", "data", "prior"],
)
def test_a_hub_out_of_reach_is_said_at_once(
    ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], line: str
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert ld3m(*arguments) == Outcome(2, "", f"ld3m: {line}\n")
    assert sum(slept) < 1  # the client alone waits for half a minute
