"""A server behind a proxy of the environment, or beside it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from freqfilter.errors import UserError
from freqfilter.tracking.client import check_reachable, is_reachable
from tests.conftest import Typed, free_port


class Health(BaseHTTPRequestHandler):
    """A server that responds, or a proxy that does not reach it."""

    def do_GET(self) -> None:
        self.send_response(503 if self.path.startswith("http") else 200)  # a proxy is sent the whole address
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with HTTPServer(("127.0.0.1", 0), Health) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_the_message_names_the_proxy_through_which_the_server_does_not_respond(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_reachable(server)
    nothing = f"127.0.0.1:{free_port()}"
    for proxy in (f"http://me:secret@{nothing}", f"me:secret@{nothing}", server):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(UserError) as caught:
            check_reachable(server)
        address = server if proxy == server else f"http://{nothing}"
        assert f"does not respond through the proxy {address} of the environment; set NO_PROXY=127.0.0.1 if" in str(
            caught.value
        )
        assert "secret" not in str(caught.value)
        assert is_reachable(server, direct=True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    check_reachable(server)


def test_a_server_that_is_down_is_not_blamed_on_a_proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        check_reachable(f"http://127.0.0.1:{free_port()}")
    assert "proxy" not in str(caught.value)


def test_a_command_names_the_proxy_in_one_line(server: str, typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("http_proxy", server)
    code, line = typed("history")
    assert code == 2
    assert line.count("\n") == 1
    assert "NO_PROXY=127.0.0.1" in line
