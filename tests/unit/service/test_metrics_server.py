# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP port of a daemon: whom it answers, and for how long it bears one client."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from zernel import metrics


class Nothing:
    """A collector of no metrics."""

    def collect(self) -> list[object]:
        return []


@pytest.fixture
def port() -> Iterator[int]:
    server = metrics.MetricsServer(
        0, Nothing(), lambda: None, setting="port", pages={"/page": lambda query: (200, {"asked": query})}
    )
    yield server.port
    server.close()


def ask(port: int, path: str, host: str | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("GET", path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("path", ["/page?a=1", "/metrics", "/-/healthy"])
def test_only_who_asks_for_this_host_is_answered(port: int, path: str) -> None:
    for host in (None, "127.0.0.1", f"127.0.0.1:{port}", "localhost", "LOCALHOST:1", "[::1]:9"):
        assert ask(port, path, host) == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", f"evil.example:{port}", "localhost:x"):
        assert ask(port, path, host) == 403


def test_clients_that_never_come_to_the_point_hold_no_connection(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "DEADLINE_S", 0.5)
    stop = threading.Event()
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(metrics.MAX_CONNECTIONS)]

    def drip() -> None:
        while not stop.wait(0.05):
            for client in clients:
                try:
                    client.send(b"G")
                except OSError:
                    continue

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                assert ask(port, "/-/healthy", "localhost") == 200
                break
            except (OSError, http.client.HTTPException):
                assert time.monotonic() < deadline
    finally:
        stop.set()
        thread.join()
        for client in clients:
            client.close()
