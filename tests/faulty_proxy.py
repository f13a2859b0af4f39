"""A proxy before a server of an object store on this machine, which fails when it is told to."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import re
import threading
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Request:
    method: str
    path: str
    """With the query."""
    range: str | None
    num_bytes: int
    """Of its body."""


Action = Callable[["_Exchange"], None]


@dataclasses.dataclass
class _Fault:
    pattern: re.Pattern[str]
    action: Action
    times: int


class FaultyProxy:
    """Hands requests on to a server; those that match a fault, not as they should be."""

    def __init__(self, server_port: int) -> None:
        self.requests: list[Request] = []
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._server_port = server_port
        proxy = self

        class Handler(_Exchange):
            def proxy(self) -> FaultyProxy:
                return proxy

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, pattern: str, action: Action, times: int = 1) -> None:
        """Has the next requests whose ``METHOD path`` the pattern finds treated otherwise."""
        with self._lock:
            self._faults.append(_Fault(re.compile(pattern), action, times))

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
            self.requests.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def note(self, request: Request) -> Action:
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.times and fault.pattern.search(f"{request.method} {request.path}"):
                    fault.times -= 1
                    return fault.action
        return pass_on

    def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._server_port, timeout=60)
        try:
            connection.request(method, path, body=body or None, headers=headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()


class _Exchange(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    body = b""

    def proxy(self) -> FaultyProxy:
        raise NotImplementedError

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()
            return
        self.close_connection = True

    def _handle(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, self.headers.get("Range"), len(self.body))
        self.proxy().note(request)(self)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def ask(self, body: bytes | None = None) -> tuple[int, list[tuple[str, str]], bytes]:
        body = self.body if body is None else body
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        if "Content-Length" in headers:
            headers["Content-Length"] = str(len(body))
        return self.proxy().ask(self.command, self.path, headers, body)

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, shown: int | None = None) -> None:
        """Answers; with `shown`, so many bytes of the body, and then the connection ends."""
        self.send_response(status)
        has_length = False
        for name, value in headers:
            if name.lower() in ("date", "server", "connection", "transfer-encoding"):
                continue
            has_length |= name.lower() == "content-length"
            self.send_header(name, value)
        if not has_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:shown])
        if shown is not None:
            self.drop()

    def drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def log_message(self, format: str, *args: object) -> None:
        pass


def pass_on(exchange: _Exchange) -> None:
    exchange.answer(*exchange.ask())


def slow_down(exchange: _Exchange) -> None:
    """The answer of S3 to too many requests."""
    body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    exchange.answer(503, [("Content-Type", "application/xml")], b"" if exchange.command == "HEAD" else body)


def refuse(exchange: _Exchange) -> None:
    """The answer to a request that makes no sense, which nobody makes again."""
    exchange.answer(400, [("Content-Type", "application/json")], b'{"error": {"code": 400, "message": "refused"}}')


def give_up_upload(exchange: _Exchange) -> None:
    """The answer of Google's storage to the end of an upload that is not finished."""
    exchange.answer(499, [], b"")


def drop_connection(exchange: _Exchange) -> None:
    """The server never learns of the request."""
    exchange.drop()


def lose_answer(exchange: _Exchange) -> None:
    """The server does what it is asked for."""
    exchange.ask()
    exchange.drop()


def cut_answer(exchange: _Exchange) -> None:
    """Half of the body comes."""
    status, headers, body = exchange.ask()
    exchange.answer(status, headers, body, shown=len(body) // 2)


def shorten_answer(exchange: _Exchange) -> None:
    """Half of the body comes, and the head says that this is all."""
    status, headers, body = exchange.ask()
    kept = [
        (name, value) for name, value in headers if not name.lower().startswith(("content-length", "x-amz-checksum"))
    ]
    exchange.answer(status, kept, body[: len(body) // 2])


def cut_upload(exchange: _Exchange) -> None:
    """The server gets half of the body, and finds nothing wrong with it."""
    exchange.answer(*exchange.ask(exchange.body[: len(exchange.body) // 2]))
