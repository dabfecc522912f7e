"""Files from a server with every fault: whole or missing, resumed after a cut, and one line for what goes wrong."""

import errno
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from web_server import Answer, Web, web

from ld3m.errors import UserError
from ld3m.machine import download as downloads
from ld3m.machine import lock
from ld3m.machine.download import download
from ld3m.machine.partial import Part

CONTENT = random.Random(0).randbytes(400_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"\n<!DOCTYPE html><html><title>Sign in</title></html>"


@pytest.fixture
def server() -> Iterator[Web]:
    with web(CONTENT) as server:
        yield server


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were slept between attempts; time passes in no other way."""
    slept: list[float] = []
    monkeypatch.setattr(downloads, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    return slept


def fetch(server: Web | str, path: Path) -> str:
    """Fetches a file; returns the SHA-256 of what is there then."""
    url = server if isinstance(server, str) else server.url
    download(url, path, what="cin256-v2", advice="give it by --from")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(server: Web | str, path: Path) -> str:
    """The one line of a download that fails, after which there is no file."""
    with pytest.raises(UserError) as caught:
        fetch(server, path)
    assert len(caught.value.lines) == 1
    assert "\n" not in str(caught.value)
    assert not path.exists()
    return str(caught.value)


def left(path: Path) -> set[str]:
    return {each.name.removeprefix(path.name) for each in path.parent.iterdir()}


def starts(server: Web) -> list[int]:
    """Where each request began."""
    return [int(asked[6:-1]) if asked else 0 for asked in server.ranges_asked]


def cut_at(server: Web, path: Path, offset: int = 250_000) -> int:
    """Leaves a part, as a process does that gives up; returns its length."""
    server.always = Answer(status=404)
    server.answers = [Answer(cut=offset)]
    refused(server, path)
    server.always, server.ranges_asked[:] = None, []
    assert left(path) == {".lock", ".part", ".part.json"}
    return path.with_name(path.name + ".part").stat().st_size


def test_a_file_appears_whole_and_is_fetched_once(server: Web, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "new" / "model.ckpt"
    assert fetch(server, path) == DIGEST
    assert path.read_bytes() == CONTENT
    assert left(path) == {"", ".lock"}
    line = rf"ld3m: cin256-v2: fetching 400kB from {re.escape(server.url)} to {path.parent} \(\S+B are free\)\n"
    assert re.search(line, capsys.readouterr().err)
    assert fetch(server, path) == DIGEST
    assert len(server.lines) == 1


@pytest.mark.parametrize("tenth", range(10))
def test_a_cut_at_every_tenth_is_resumed_there(
    server: Web, tmp_path: Path, slept: list[float], tenth: int, capsys: pytest.CaptureFixture
) -> None:
    cut = tenth * len(CONTENT) // 10
    server.answers = [Answer(cut=cut)]
    assert fetch(server, tmp_path / "model.ckpt") == DIGEST
    assert (tmp_path / "model.ckpt").read_bytes() == CONTENT
    assert starts(server)[0] == 0
    assert cut - downloads.CHUNK < starts(server)[1] <= cut
    assert slept == [1]
    assert (
        capsys.readouterr().err.count("cin256-v2: the connection broke; trying again until nothing came for 10 s") == 1
    )


def test_many_cuts_are_outlived_if_each_brings_something(
    server: Web, tmp_path: Path, slept: list[float], capsys: pytest.CaptureFixture
) -> None:
    server.answers = [Answer(cut=len(CONTENT) // 10)] * 30
    assert fetch(server, tmp_path / "model.ckpt") == DIGEST
    assert len(slept) > 8
    assert set(slept) == {1}
    assert starts(server) == sorted(set(starts(server)))
    assert capsys.readouterr().err.count("trying again") == 1


def test_nothing_more_for_ten_seconds_is_the_end_and_the_next_command_resumes(
    server: Web, tmp_path: Path, slept: list[float], capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "model.ckpt"
    server.always, server.answers = Answer(cut=0), [Answer(cut=131_072)]
    assert refused(server, path) == (
        f"cin256-v2: cannot be fetched from {server.url} (the connection broke); the same command resumes at 131kB, or "
        "give it by --from"
    )
    assert slept == [1, 2, 4]
    server.always, server.ranges_asked[:] = None, []
    capsys.readouterr()
    assert fetch(server, path) == DIGEST
    assert starts(server) == [131_072]
    assert "fetching 400kB, of which 131kB are here, from" in capsys.readouterr().err


def test_a_server_without_ranges_starts_over_and_says_so(
    server: Web, tmp_path: Path, slept: list[float], capsys: pytest.CaptureFixture
) -> None:
    server.ranges, server.answers = False, [Answer(cut=200_000)]
    assert fetch(server, tmp_path / "model.ckpt") == DIGEST
    assert starts(server)[1] > 0
    assert "ld3m: cin256-v2: its server cannot resume; starting over" in capsys.readouterr().err


def test_a_server_without_ranges_that_always_cuts_is_given_up(server: Web, tmp_path: Path, slept: list[float]) -> None:
    server.ranges, server.always = False, Answer(cut=200_000)
    assert "(the connection broke)" in refused(server, tmp_path / "model.ckpt")
    assert slept == [1, 2, 4]


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Content-Range": "bytes 0-399999/400000"}, "its server answers with another range"),
        ({"Content-Range": "nonsense"}, "its server answers with another range"),
        ({"Content-Range": "bytes 131072-499999/500000"}, "the file has changed"),
        ({"ETag": '"2"'}, "the file has changed"),
    ],
    ids=str,
)
def test_an_answer_that_does_not_fit_what_is_here_is_not_appended(
    server: Web, tmp_path: Path, slept: list[float], headers: dict[str, str], words: str, capsys: pytest.CaptureFixture
) -> None:
    server.answers = [Answer(cut=131_072), Answer(headers=headers)]
    assert fetch(server, tmp_path / "model.ckpt") == DIGEST
    assert (tmp_path / "model.ckpt").read_bytes() == CONTENT
    assert starts(server) == [0, 131_072, 0]
    assert f"ld3m: cin256-v2: {words}; starting over" in capsys.readouterr().err


@pytest.mark.parametrize("kept", ["tag", "changed"])
@pytest.mark.parametrize("length", [400_000, 300_000, 100_000])
def test_a_file_that_changed_on_the_server_starts_over(
    server: Web, tmp_path: Path, length: int, kept: str, capsys: pytest.CaptureFixture
) -> None:
    setattr(server, {"tag": "changed", "changed": "tag"}[kept], None)
    path = tmp_path / "model.ckpt"
    assert cut_at(server, path) > 200_000
    server.content = CONTENT[::-1][:length]
    setattr(server, kept, {"tag": '"2"', "changed": "Tue, 04 Jan 2022 10:00:00 GMT"}[kept])
    assert fetch(server, path) == hashlib.sha256(server.content).hexdigest()
    assert path.read_bytes() == server.content
    assert "the file has changed; starting over" in capsys.readouterr().err


def test_a_shorter_file_of_a_careless_server_starts_over(server: Web, tmp_path: Path) -> None:
    """It says that it is the same, and has less than what is here."""
    path = tmp_path / "model.ckpt"
    cut_at(server, path)
    server.content = CONTENT[:100_000]
    fetch(server, path)
    assert path.read_bytes() == server.content


def test_without_a_tag_or_a_date_it_starts_over(
    server: Web, tmp_path: Path, slept: list[float], capsys: pytest.CaptureFixture
) -> None:
    server.tag = server.changed = None
    server.answers = [Answer(cut=200_000)]
    assert fetch(server, tmp_path / "one") == DIGEST
    assert server.ranges_asked == [None, None]
    assert "its server cannot resume; starting over" in capsys.readouterr().err


def test_a_weak_tag_does_not_name_bytes(server: Web, tmp_path: Path, slept: list[float]) -> None:
    server.tag, server.answers = 'W/"1"', [Answer(cut=131_072)]
    assert fetch(server, tmp_path / "model.ckpt") == DIGEST
    assert starts(server) == [0, 131_072]  # by the time of change


@pytest.mark.parametrize("cut", [131_072, len(CONTENT)])
def test_a_file_of_unknown_length_ends_where_the_server_says(
    server: Web, tmp_path: Path, slept: list[float], cut: int
) -> None:
    """If all is here but the end mark, the rest is an empty range: 416."""
    server.chunked, server.answers = True, [Answer(cut=cut)]
    assert fetch(server, tmp_path / "model.ckpt") == DIGEST
    assert len(starts(server)) == 2


def test_a_cut_that_cannot_be_seen_is_not_risked(server: Web, tmp_path: Path, slept: list[float]) -> None:
    server.length = False
    assert "does not say how long it is, so that a cut would not be noticed" in refused(server, tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"content": b""}, "gives an empty file"),
        ({"content": PAGE}, "gives a web page, such as of a login or an error, not the file"),
        ({"content": b"version https://git-lfs.github.com/spec/v1\n"}, "gives a Git LFS pointer, not the file"),
        ({"always": Answer(headers={"Content-Encoding": "gzip"})}, "gives it compressed (gzip), not as it is"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_another_file_than_expected_is_refused(server: Web, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    line = refused(server, tmp_path / "model.ckpt")
    assert line.startswith("cin256-v2: ")
    assert f"{server.url} {words}" in line
    assert line.endswith("; give it by --from")
    assert left(tmp_path / "model.ckpt") == {".lock"}


def test_a_login_page_between_leaves_what_was_fetched(server: Web, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    length = cut_at(server, path)
    server.answers = [Answer(status=200, body=PAGE, headers={"Content-Length": str(len(PAGE))})]
    assert "gives a web page" in refused(server, path)
    assert fetch(server, path) == DIGEST
    assert starts(server) == [length, length]


@pytest.mark.parametrize("status", [204, 401, 403, 404, 410, 416, 451, 501])
def test_what_no_further_attempt_helps_against_is_said_at_once(
    server: Web, tmp_path: Path, slept: list[float], status: int
) -> None:
    server.always = Answer(status=status, body=b"")
    line = refused(server, tmp_path / "model.ckpt")
    assert re.fullmatch(rf"cin256-v2: {re.escape(server.url)} answers {status} [A-Z][\w' -]+; give it by --from", line)
    assert slept == []


@pytest.mark.parametrize(
    ("status", "after", "waits"),
    [
        (429, "", [1, 2, 4]),
        (500, "", [1, 2, 4]),
        (503, "3", [3, 3, 3]),
        (503, "0", [1] * 9),
        (504, "soon", [1, 2, 4]),
        (503, "600", []),
        (429, "a date", []),
    ],
)
def test_a_busy_server_is_asked_for_ten_seconds(
    server: Web, tmp_path: Path, slept: list[float], status: int, after: str, waits: list[int]
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True)
    server.always = Answer(status=status, headers={"Retry-After": date if after == "a date" else after}, body=b"")
    line = refused(server, tmp_path / "model.ckpt")
    assert f"(it answers {status} " in line
    assert slept == waits
    assert bool(re.search("asks to wait (600|599) s", line)) == (after in ("600", "a date"))


def test_a_server_that_was_busy_gives_the_file(server: Web, tmp_path: Path, slept: list[float]) -> None:
    server.answers = [Answer(status=503, headers={"Retry-After": "2"}), Answer(status=429)]
    assert fetch(server, tmp_path / "model.ckpt") == DIGEST
    assert slept == [2, 2]


def test_redirects_are_followed_ranges_and_all_and_loops_are_seen(
    server: Web, tmp_path: Path, slept: list[float]
) -> None:
    moved = Answer(status=302, headers={"Location": "/elsewhere"}, body=b"")
    server.answers = [moved, Answer(cut=131_072), moved]
    assert fetch(server, tmp_path / "model.ckpt") == DIGEST
    assert starts(server) == [0, 0, 131_072, 131_072]
    server.always = moved
    assert "Exceeded 30 redirects" in refused(server, tmp_path / "other.ckpt")


def unknown(host: str, *_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_without_a_network_it_ends_after_seconds(
    tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/model.ckpt"
        assert refused(url, tmp_path / "model.ckpt") == (
            f"cin256-v2: cannot be fetched from {url} (Connection refused); give it by --from"
        )
    assert slept == [1, 2, 4]
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "(Name or service not known)" in refused("https://nowhere.invalid/model.ckpt", tmp_path / "model.ckpt")
    assert left(tmp_path / "model.ckpt") == {".lock"}


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://", "http://[::1/x", "http://127.0.0.1:99999/x"])
def test_an_address_that_is_none_is_said_at_once(tmp_path: Path, slept: list[float], url: str) -> None:
    assert "cannot be fetched from" in refused(url, tmp_path / "model.ckpt")
    assert slept == []


def test_a_server_that_stalls_is_left_and_asked_again(
    server: Web, tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "SILENCE", 0.1)
    server.answers = [Answer(stall=0.5)]
    assert fetch(server, tmp_path / "model.ckpt") == DIGEST
    server.always = Answer(stall=0.5)
    assert "(no answer in time)" in refused(server, tmp_path / "other.ckpt")


def test_secrets_of_an_address_are_neither_shown_nor_kept(server: Web, tmp_path: Path, slept: list[float]) -> None:
    url = server.url.replace("//", "//me:secret1@") + "?token=secret2"
    server.always, server.answers = Answer(status=403, body=b""), [Answer(cut=200_000)]
    assert "secret" not in refused(url, tmp_path / "model.ckpt")
    assert "secret" not in (tmp_path / "model.ckpt.part.json").read_text()
    assert "token=secret2" in server.lines[0]


def test_a_proxy_is_asked(server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/models/model.ckpt"))
    assert fetch("http://models.invalid/model.ckpt", tmp_path / "model.ckpt") == DIGEST
    assert server.lines == ["GET http://models.invalid/model.ckpt HTTP/1.1"]


def test_certificates_that_are_not_there_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    assert "none.pem" in refused("https://127.0.0.1:1/x", tmp_path / "model.ckpt")


def test_a_disk_without_room_is_said_before_anything_is_written(
    server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000))
    path = tmp_path / "model.ckpt"
    assert refused(server, path) == (
        f"cin256-v2: 400kB are to be fetched, and 300kB are free in {tmp_path}; free some, or set LD3M_CACHE to a "
        "larger disk"
    )
    assert left(path) == {".lock"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()], ids=repr)
def test_whatever_ends_it_the_next_command_resumes(
    server: Web, tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Part.write

    def fail(part: Part, chunk: bytes) -> None:
        if part.offset >= 200_000:
            raise error
        write(part, chunk)

    path = tmp_path / "model.ckpt"
    with monkeypatch.context() as context:
        context.setattr(Part, "write", fail)
        with pytest.raises((UserError, KeyboardInterrupt)) as caught:
            fetch(server, path)
    if isinstance(error, OSError):
        assert f"cin256-v2: cannot be written to {tmp_path} (No space left on device); the same" in str(caught.value)
    assert not path.exists()
    assert fetch(server, path) == DIGEST
    assert starts(server)[1] >= 200_000


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a bit": (lambda part, note: flip(part), "it is damaged"),
    "shorter": (lambda part, note: os.truncate(part, 1000), "it is damaged"),
    "no note": (lambda part, note: note.unlink(), "its note is missing"),
    "half a note": (lambda part, note: os.truncate(note, 30), "its note is damaged"),
    "a list": (lambda part, note: note.write_text("[1]"), "its note is damaged"),
    "negative": (lambda part, note: note.write_text(re.sub(r'"saved":\d+', '"saved":-3', note.read_text())), "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_starts_over(server: Web, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture) -> None:
    path, (harm, words) = tmp_path / "model.ckpt", DAMAGES[damage]
    cut_at(server, path)
    harm(tmp_path / "model.ckpt.part", tmp_path / "model.ckpt.part.json")
    assert fetch(server, path) == DIGEST
    assert starts(server) == [0]
    assert re.search(rf"ld3m: cin256-v2: what was fetched before is not used: .*{words}", capsys.readouterr().err)


def test_a_part_of_another_address_starts_over(server: Web, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    cut_at(server, path)
    assert fetch(server.url + "?v=2", path) == DIGEST
    assert starts(server) == [0]


def test_what_was_written_after_the_note_is_not_trusted(server: Web, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    length = cut_at(server, path)
    with (tmp_path / "model.ckpt.part").open("ab") as file:
        file.write(b"\0" * 100_000)
    assert fetch(server, path) == DIGEST
    assert starts(server) == [length]


def test_of_two_at_once_one_fetches_and_the_other_says_for_what_it_waits(
    server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(lock, "SOON", 0.05)
    server.pause = 0.01
    with ThreadPoolExecutor(2) as pool:
        digests = [pool.submit(fetch, server, tmp_path / "model.ckpt") for _ in range(2)]
        assert [each.result() for each in digests] == [DIGEST, DIGEST]
    assert len(server.lines) == 1
    assert capsys.readouterr().err.count("waiting for another process, which fetches cin256-v2\n") == 1


def test_who_waited_takes_over_if_the_first_fails(
    server: Web, tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pause, server.answers = 0.01, [Answer(cut=200_000), *[Answer(status=503)] * 4]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fetch, server, tmp_path / "model.ckpt") for _ in range(2)]
        errors = [each.exception() for each in both]
    assert sorted(type(each) is UserError for each in errors) == [False, True]
    assert (tmp_path / "model.ckpt").read_bytes() == CONTENT
    assert starts(server)[-1] > 150_000


PROGRAM = """
import sys
from pathlib import Path
from ld3m.machine import download, partial
partial.SAVE_EVERY = 0.02
download.download(sys.argv[1], Path(sys.argv[2]), what="cin256-v2", advice="")
"""


def kill_while_fetching(server: Web, path: Path, seconds: float) -> None:
    """Ends a process by SIGKILL (on Windows TerminateProcess) some seconds after it began to write."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, server.url, str(path)], stderr=subprocess.DEVNULL)
    requests = len(server.lines)
    while len(server.lines) == requests and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.wait()


def test_a_killed_process_leaves_what_the_next_resumes(server: Web, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    server.pause = 0.02
    kill_while_fetching(server, path, 0.25)
    assert left(path) >= {".part", ".part.json"}
    assert not path.exists()
    server.pause = 0
    assert fetch(server, path) == DIGEST
    assert path.read_bytes() == CONTENT
    assert starts(server)[1] > 0


@pytest.mark.slow
def test_kills_at_random_moments(server: Web, tmp_path: Path) -> None:
    path, kills = tmp_path / "model.ckpt", 0
    draw = random.Random(0)
    server.pause = 0.02
    while not path.exists():
        kill_while_fetching(server, path, draw.uniform(0, 0.12))
        kills += 1
        assert not path.exists() or path.read_bytes() == CONTENT
    assert kills > 5
    assert fetch(server, path) == DIGEST
    assert left(path) == {"", ".lock"}
