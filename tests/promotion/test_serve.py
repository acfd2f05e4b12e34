"""The champion over HTTP: predictions for concurrent clients, and reasons for bad requests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import freqfilter
from freqfilter.data.windows import noise_inputs
from tests import zygote
from tests.conftest import Typed, free_port, wait_until_it_answers
from tests.promotion.making import NAME

pytestmark = pytest.mark.slow


def post(url: str, body: bytes) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 (our own server)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


@pytest.fixture
def served(registry_with: Callable[[int | None], Path]) -> Iterator[str]:
    registry = registry_with(2)
    port, log = free_port(), registry / "serve.log"
    command = [sys.executable, "-m", "freqfilter", "serve", "--port", str(port)]
    environment = os.environ | {"PATH": os.defpath}  # of an environment that is not activated, as with cron
    with log.open("w") as output:
        server = zygote.Popen(
            command, cwd=registry, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/ping", server, log)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 143


def test_concurrent_clients_get_predictions_and_bad_requests_a_reason(served: str) -> None:
    rng, filter_ = np.random.default_rng(0), freqfilter.load(NAME, alias="champion")

    def one(number: int) -> float:
        x = noise_inputs(rng, 1 + number % 3, 5 + number, n_components=4)
        status, response = post(served, json.dumps({"inputs": x.tolist()}).encode())
        assert status == 200
        return float(np.abs(np.array(response["predictions"]) - filter_.predict(x)).max())

    with ThreadPoolExecutor(8) as clients:
        assert max(clients.map(one, range(40))) < 1e-5
    good = np.eye(5)[[[1] * 5]].tolist()
    for body in (
        b"not json",
        b"[]",
        json.dumps({"inputs": np.zeros((1, 5, 4)).tolist()}).encode(),
        json.dumps({"inputs": np.zeros((5, 5)).tolist()}).encode(),
        json.dumps({"inputs": [[["a"] * 5]]}).encode(),
        json.dumps({"inputs": [[[float("nan")] * 5]]}).encode(),
        json.dumps({"wrong": good}).encode(),
        json.dumps({"instances": good}).encode(),
        b"",
    ):
        status, response = post(served, body)
        assert status == 400, (body, response)
        assert response.get("message"), body
    status, response = post(served, json.dumps({"inputs": [[[0.1, 7, 7, 7, 7]]]}).encode())
    assert status == 400
    # Without the request, which MLflow writes before a reason.
    assert str(response["message"]).startswith(
        "inputs have a selector that is not one-hot and constant, in window 0; pass"
    )
    assert post(served, json.dumps({"inputs": good}).encode())[0] == 200


def test_serving_a_missing_version_is_an_error(registry: Path, typed: Typed) -> None:
    code, line = typed("serve")
    assert code == 2
    assert "champion" in line
    assert typed("serve", "--version", "99")[0] == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, line = typed("serve", "--version", "1", "--port", str(port))
    assert (code, line) == (
        2,
        f"freqfilter: port={port} is in use; stop the program that listens there, or give another --port\n",
    )
