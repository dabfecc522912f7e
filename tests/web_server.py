"""A server of one file on the loopback interface, with the faults that servers have."""

import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread


@dataclass
class Answer:
    """What the server does to a request; left out, it gives what was asked for, ranges too."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None
    """Bytes of the body after which the connection is closed."""
    stall: float = 0
    """Seconds to wait before the body."""


class Web(ThreadingHTTPServer):
    """One file at any path; `answers` are taken one after the other, then each request gets what it asks for."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/models/model.ckpt"
        self.content, self.tag, self.changed = content, '"1"', "Mon, 03 Jan 2022 10:00:00 GMT"
        self.ranges = True
        self.chunked = False
        self.length = True
        self.answers: list[Answer] = []
        self.always: Answer | None = None
        self.ranges_asked: list[str | None] = []
        self.lines: list[str] = []
        self.pause = 0.0
        """Seconds after each piece of 16 KiB."""
        self.lock = Lock()


@contextmanager
def web(content: bytes) -> Iterator[Web]:
    """A server for the length of a test."""
    server = Web(content)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """A connection a request."""

    server: Web
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        self.close_connection = True
        with server.lock:
            server.ranges_asked.append(asked)
            server.lines.append(self.requestline)
            answer = server.answers.pop(0) if server.answers else server.always or Answer()
        body, status, headers = server.content, 200, {}
        if server.tag:
            headers["ETag"] = server.tag
        if server.changed:
            headers["Last-Modified"] = server.changed
        fits = self.headers.get("If-Range") in (None, server.tag, server.changed)
        if server.ranges and fits and asked and (found := re.fullmatch(r"bytes=(\d+)-", asked)):
            start, whole = int(found[1]), len(body)
            if start >= whole:
                status, body, headers["Content-Range"] = 416, b"", f"bytes */{whole}"
            else:
                status, body, headers["Content-Range"] = 206, body[start:], f"bytes {start}-{whole - 1}/{whole}"
        status, body = answer.status or status, body if answer.body is None else answer.body
        headers = {"Content-Length": str(len(body)), **headers, **answer.headers, "Connection": "close"}
        if server.chunked:
            headers["Transfer-Encoding"] = "chunked"
        if server.chunked or not server.length:
            del headers["Content-Length"]
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        time.sleep(answer.stall)
        sent = body if answer.cut is None else body[: answer.cut]
        try:
            for start in range(0, len(sent), 2**14):
                piece = sent[start : start + 2**14]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if server.chunked else piece)
                time.sleep(server.pause)
            if server.chunked and answer.cut is None:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:
            return
        if answer.cut is not None:
            self.connection.shutdown(socket.SHUT_RDWR)
