# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP side of a daemon's metrics: /metrics, /-/healthy and /-/ready on loopback.

Only loopback: another address needs TLS and authentication. Metrics come from a collector that
builds them anew for each scrape, so what no longer exists (a process) is no longer shown.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import json
import logging
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from zernel.errors import fail

MAX_CONNECTIONS = 8
"""Connections served at once. One more waits a second for a slot, then it is closed."""

DEADLINE_S = 30
"""For how long a client may take to ask and to take the answer: it cannot hold a connection for ever."""

_OURS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
"""What a client calls this host. With another name a web page had it looked up (DNS rebinding)."""

log = logging.getLogger(__name__)


Page = Callable[[Mapping[str, str]], tuple[int, dict[str, Any]]]
"""Answers one path: the query's parameters (the last of each name) → HTTP status and what is sent as JSON."""


class MetricsServer:
    """Serves one collector. ``ready`` returns None when the daemon does its work, else the reason why not."""

    def __init__(
        self,
        port: int,
        collector: Any,
        ready: Callable[[], str | None],
        *,
        setting: str,
        pages: Mapping[str, Page] | None = None,
    ) -> None:
        """Bind 127.0.0.1:``port``.

        :param collector: an object with ``collect()``, as prometheus_client's custom collectors.
        :param setting: where the person changes the port, e.g. ``port in [prometheus] of /etc/...``.
        :param pages: more paths, each answered in JSON.
        :raises ZernelError: when the port cannot be bound.
        """
        from prometheus_client.exposition import choose_encoder
        from prometheus_client.registry import CollectorRegistry

        registry = CollectorRegistry()
        registry.register(collector)
        pages = pages or {}

        def answer(target: str, accept: str) -> tuple[int, str, bytes]:
            path, _, query = target.partition("?")
            if path in pages:
                try:
                    parameters = dict(urllib.parse.parse_qsl(query, max_num_fields=16))
                except ValueError:
                    return 400, _TEXT, b"Too many parameters\n"
                status, data = pages[path](parameters)
                return status, "application/json", json.dumps(data).encode() + b"\n"
            if path == "/metrics":
                encoder, content_type = choose_encoder(accept)
                return 200, content_type, encoder(registry)
            if path == "/-/healthy":
                return 200, _TEXT, b"healthy\n"
            if path == "/-/ready":
                reason = ready()
                return (200, _TEXT, b"ready\n") if reason is None else (503, _TEXT, f"{reason}\n".encode())
            paths = ", ".join(("/metrics", "/-/healthy", "/-/ready", *pages))
            return 404, _TEXT, f"Paths: {paths}\n".encode()

        try:
            self._server = _Server(port, answer)
        except OSError as error:
            raise _bind_error(error, port, setting) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_TEXT = "text/plain; charset=utf-8"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, answer: Callable[[str, str], tuple[int, str, bytes]]) -> None:
        self.answer = answer
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        # This is the accept loop: it waits a little for a slot, then turns the client away.
        if not self._slots.acquire(timeout=1.0):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(DEADLINE_S, _cut, (request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("request failed", exc_info=True)


def _cut(request: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has just ended
        request.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    server_version = "zernel"
    sys_version = ""

    def do_GET(self) -> None:
        try:
            if _OURS.fullmatch(self.headers.get("Host", "localhost")):
                status, content_type, body = self.server.answer(self.path, self.headers.get("Accept", ""))
            else:
                status, content_type, body = 403, _TEXT, b"Ask for 127.0.0.1 or localhost\n"
        except Exception:
            log.exception("cannot answer %s", self.path)
            status, content_type, body = 500, _TEXT, b"internal error; see the daemon's log\n"
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _bind_error(error: OSError, port: int, setting: str) -> Exception:
    if error.errno == errno.EADDRINUSE:
        category = f"Port {port} on 127.0.0.1 is already taken"
        suggestion = f"Stop that program, or choose another {setting}"
        extra = f"'ss -ltnp sport = :{port}' shows which program has it"
    else:
        category = f"Cannot listen on 127.0.0.1:{port}"
        suggestion = f"Choose another {setting}"
        extra = error.strerror or str(error)
    return fail("port-unavailable", category, explanation=extra, suggestion=suggestion)
