"""Files from the web: whole or missing, resumed after a cut, and fetched by one process at a time."""

import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import requests
from requests import Response, exceptions
from tqdm import tqdm

from ld3m.errors import UserError, one_line
from ld3m.files import ANOTHER_CACHE, writable
from ld3m.machine.environment import without_secrets
from ld3m.machine.hub import TRANSIENT
from ld3m.machine.lock import hold
from ld3m.machine.partial import Part, beside, remove_leftovers
from ld3m.reading import HEAD, POINTER, is_web_page

PATIENCE = 10.0
"""Seconds without a new byte after which no further attempt is made."""
SILENCE = 7.0
"""Seconds without a byte after which an attempt ends."""
WAITS = (1, 2, 4)
"""Seconds before each further attempt, unless the server asks for others; from the first again after a new byte."""
CHUNK = 2**15
"""Bytes that are read at a time; a cut loses less."""
PASSING = (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError)
"""Errors after which another attempt may succeed."""


def download(url: str, path: Path, *, what: str, advice: str, terms: str = "") -> None:
    """Fetches a file over HTTP, unless it is there; call it on one process of a run.

    A proxy is taken from HTTPS_PROXY, certificates from REQUESTS_CA_BUNDLE or SSL_CERT_FILE. Other commands that fetch
    the same file wait for the first, and take over if it fails.

    Args:
        url: http:// or https://.
        path: where the file appears once it is whole. Until then it lies beside that, as `.part`, and the next call
            resumes from there; `.lock` is left behind. Both are appended to its name.
        what: the file is, for the progress bar, for those who wait and for errors: "cin256-v2".
        advice: what to do if it cannot be fetched; errors end with it.
        terms: what else to say when it is fetched, such as its licence.

    Raises:
        UserError: if it cannot be fetched, is a web page or a pointer, or does not fit on the disk.
    """
    writable(path.parent, ANOTHER_CACHE)
    with hold(beside(path, ".lock"), doing=f"fetches {what}"):
        _Download(url, path, what, advice, terms).run()


class _CutError(Exception):
    """The end of an attempt that another may follow, and the seconds until then if they are given."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Download:
    """A file's way to the disk, in as many attempts as it takes."""

    def __init__(self, url: str, path: Path, what: str, advice: str, terms: str) -> None:
        self.url, self.path, self.what, self.advice = url, path, what, advice
        self.terms = f" {terms}" if terms else ""
        self.shown = without_secrets(url)
        self.announced = False
        self.ranges = True
        """Whether the server is asked for the rest of a file."""
        self.furthest, self.heard = 0, time.monotonic()
        """The most bytes that were there so far, and when."""

    def run(self) -> None:
        """Makes attempts until the file is whole, unless it is there."""
        with self._disk():
            remove_leftovers(self.path)
            if self.path.is_file():
                return
            self.part = Part(self.path, self.url)
        if self.part.dropped:
            self._say(f"{self.what}: what was fetched before is not used: {self.part.dropped}")
        try:
            with requests.Session() as self.session:
                self.session.verify = os.environ.get("SSL_CERT_FILE") or True  # REQUESTS_CA_BUNDLE goes before it
                self._attempts()
            self._finish()
        finally:
            with suppress(OSError, UserError):  # of a full disk, which another error names
                self.part.close()

    def _attempts(self) -> None:
        tries, said = 0, False
        self.furthest, self.heard = self.part.offset, time.monotonic()
        while self.part.length is None or self.part.offset < self.part.length:
            before = self.furthest
            try:
                if self._attempt():
                    return
            except _CutError as cut:
                tries = 0 if self.furthest > before else tries
                wait = WAITS[min(tries, len(WAITS) - 1)] if cut.wait is None else cut.wait
                tries += 1
                if time.monotonic() + wait >= self.heard + PATIENCE:
                    raise self._error(f"cannot be fetched from {self.shown} ({cut})") from None
                if not said and wait:
                    self._say(f"{self.what}: {cut}; trying again until nothing came for {PATIENCE:g} s")
                    said = True
                time.sleep(wait)

    def _attempt(self) -> bool:
        """Asks for what is missing, and takes what comes; returns whether the file is whole."""
        offset, headers = self.part.offset, {"User-Agent": "ld3m", "Accept-Encoding": "identity"}
        resumes = offset > 0 and self.ranges and self.part.validator is not None
        if resumes:
            headers |= {"Range": f"bytes={offset}-", "If-Range": str(self.part.validator)}
        with self._ask(headers) as response:
            status, validator = response.status_code, _validator(response)
            start, length = _extent(response)
            if resumes and status == 416:
                if length == offset:
                    return True
                raise self._again("the file has changed")
            if status == 206 and resumes:
                self.ranges = start == offset
                if not self.ranges:
                    raise self._again("its server answers with another range")
                if self._differs(self.part.length, length) or self._differs(self.part.validator, validator):
                    raise self._again("the file has changed")
            elif status != 200:
                raise self._error(f"{self.shown} answers {status} {response.reason or ''}".rstrip())
            changed = resumes and status == 200 and validator != self.part.validator
            return self._receive(response, validator, length, "the file has changed" if changed else None)

    @contextmanager
    def _ask(self, headers: Mapping[str, str]) -> Iterator[Response]:
        """The answer to a request, if it is one of the file's server and not that it is busy."""
        silence = min(SILENCE, max(self.heard + PATIENCE - time.monotonic(), 1.0))
        try:
            response = self.session.get(self.url, headers=headers, stream=True, timeout=silence)
        except (OSError, ValueError) as error:  # requests' own are OSErrors
            untrusted = "certificate" in str(error).lower()
            if isinstance(error, PASSING) and not untrusted:
                raise _CutError(_reason(error)) from None
            trust = "; set SSL_CERT_FILE to a file with the certificates of your network" if untrusted else ""
            raise self._error(f"cannot be fetched from {self.shown} ({_reason(error)}){trust}") from None
        with response:
            if response.status_code in TRANSIENT:
                wait = _retry_after(response)
                asks = f", and asks to wait {wait:.0f} s" if wait else ""
                raise _CutError(f"it answers {response.status_code} {response.reason}{asks}", wait)
            yield response

    def _receive(self, response: Response, validator: str | None, length: int | None, changed: str | None) -> bool:
        """Writes what comes, once it is known to be the file or its rest; returns what `_attempt` does.

        Args:
            response: with the file or its rest.
            validator: of the whole file, as its length.
            length: None if the answer does not say.
            changed: why the server gives all of it if it was asked for the rest; None if it cannot give a rest.
        """
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise self._error(f"{self.shown} gives it compressed ({encoding}), not as it is")
        chunks = _chunks(response)
        first, whole = next(chunks, b""), response.status_code == 200
        if whole:
            self._check_kind(first[:HEAD])
        if not whole:
            length = length or self.part.length
        elif length is None and not _is_chunked(response):
            raise self._error(f"{self.shown} does not say how long it is, so that a cut would not be noticed")
        if whole and self.part.offset:
            self._restart(changed or "its server cannot resume")
        if whole:
            self.part.validator, self.part.length = validator, length
        self._announce()
        here = self.part.offset
        with tqdm(desc=self.what, total=length, initial=here, unit="B", unit_scale=True, leave=False) as bar:
            for chunk in itertools.chain([first], chunks):
                with self._disk():
                    self.part.write(chunk)
                bar.update(len(chunk))
                if self.part.offset > self.furthest:
                    self.furthest, self.heard = self.part.offset, time.monotonic()
        if length is not None and self.part.offset < length:
            raise _CutError("the connection broke")
        if length is not None and self.part.offset > length:
            self.part.remove()
            raise self._error(f"{self.shown} gives more than the {length:,} bytes that it should have")
        return True

    def _finish(self) -> None:
        """Makes the whole the file."""
        if not self.part.offset:
            raise self._error(f"{self.shown} gives an empty file")
        with self._disk():
            self.part.become(self.path)

    def _check_kind(self, head: bytes) -> None:
        """Raises a UserError if a file's beginning is that of what servers give in its place."""
        if is_web_page(head):
            raise self._error(f"{self.shown} gives a web page, such as of a login or an error, not the file")
        if head.startswith(POINTER):
            raise self._error(f"{self.shown} gives a Git LFS pointer, not the file itself")

    def _announce(self) -> None:
        """Says what comes, once; raises a UserError if the disk has no room for it."""
        folder, length, offset = self.path.parent, self.part.length, self.part.offset
        free = shutil.disk_usage(folder).free
        if length is not None and length - offset > free:
            raise UserError(
                f"{self.what}: {_bytes(length - offset)} are to be fetched, and {_bytes(free)} are free in {folder}; "
                "free some, or set LD3M_CACHE to a larger disk"
            )
        if not self.announced:
            extent = "a file of unknown length" if length is None else _bytes(length)
            here = f", of which {_bytes(offset)} are here," if offset else ""
            origin = f"{self.shown}{self.terms}"
            self._say(f"{self.what}: fetching {extent}{here} from {origin} to {folder} ({_bytes(free)} are free)")
        self.announced = True

    def _again(self, reason: str) -> _CutError:
        """To raise if what is there does not fit the server's answer."""
        self._restart(reason)
        return _CutError(reason, 0)

    def _restart(self, reason: str) -> None:
        """Drops what is there."""
        self._say(f"{self.what}: {reason}; starting over")
        with self._disk():
            self.part.restart()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Turns an error of the disk into one of ours."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.what}: cannot be written to {self.path.parent} ({error.strerror or one_line(error)}); the same "
                f"command resumes once it can, or {ANOTHER_CACHE}"
            ) from None

    def _error(self, problem: str) -> UserError:
        kept = f"the same command resumes at {_bytes(self.part.offset)}, or " if self.part.offset else ""
        return UserError(f"{self.what}: {problem}; {kept}{self.advice}")

    @staticmethod
    def _differs(expected: object, found: object) -> bool:
        """Whether both are known and differ."""
        return expected is not None and found is not None and expected != found

    @staticmethod
    def _say(line: str) -> None:
        tqdm.write(f"ld3m: {line}", file=sys.stderr)


def _chunks(response: Response) -> Iterator[bytes]:
    """A body's bytes; raises _CutError if it ends early and that can be seen."""
    try:
        yield from response.iter_content(CHUNK)
    except exceptions.RequestException as error:
        raise _CutError(_reason(error)) from None


def _extent(response: Response) -> tuple[int | None, int | None]:
    """At which byte of the file a body begins, and the bytes of the whole file; None if the answer does not say."""
    if response.status_code in (206, 416):
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        start, length = found.groups() if found else (None, None)
        return int(start) if start else None, int(length) if length and length != "*" else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() and not _is_chunked(response) else None


def _is_chunked(response: Response) -> bool:
    """Whether a body says where it ends."""
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()


def _validator(response: Response) -> str | None:
    """What tells a file from a later one at its address: a strong ETag, or else when it was changed."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after(response: Response) -> float | None:
    """Seconds after which a server wants to be asked again, at least one; it gives them, or a date."""
    asked = response.headers.get("Retry-After", "")
    with suppress(ValueError, TypeError):
        seconds = (
            int(asked) if asked.isdecimal() else (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        )
        return max(seconds, 1.0)
    return None


def _reason(error: Exception) -> str:
    """Why a request failed: what the system says, without what each library wraps around it."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        cause = cause.__cause__ or cause.__context__
    return "the connection broke" if isinstance(error, PASSING) else one_line(error)


def _bytes(count: int) -> str:
    return tqdm.format_sizeof(count, "B")
