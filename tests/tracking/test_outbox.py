"""Messages of a run reach the store once and in order, despite outages."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from freqfilter.errors import UserError
from freqfilter.tracking.outbox import Message, Outbox, UndeliveredError, logged_points, messages, now_ms, sender
from tests.conftest import many


def new_run() -> str:
    return str(MlflowClient().create_run("0").info.run_id)


def opened(folder: Path, run_id: str) -> Outbox:
    return Outbox(folder / "outbox.jsonl", sender(run_id, folder, {""}))


def measured(outbox: Outbox, step: int, **values: float) -> None:
    outbox.append("metrics", values=values, step=step, time_ms=now_ms(), model_id=None)


def points(run_id: str, name: str) -> list[tuple[int, float, int]]:
    return [(p.step, p.value, p.timestamp) for p in MlflowClient().get_metric_history(run_id, name)]


def test_metrics_arrive_once_in_order_with_their_time_stamps(folder: Path) -> None:
    run_id = new_run()
    outbox, times = opened(folder, run_id), []
    for step in range(1, 6):
        times.append(now_ms())
        measured(outbox, step, loss=1 / step, nan=float("nan"))
        time.sleep(0.02)
    outbox.close(30)
    found = points(run_id, "loss")
    assert [(step, value) for step, value, _ in found] == [(step, 1 / step) for step in range(1, 6)]
    assert all(abs(stamp - then) <= 15 for (_, _, stamp), then in zip(found, times, strict=True))
    assert len(points(run_id, "nan")) == 5


def test_all_kinds_of_messages_arrive_even_if_sent_twice(folder: Path) -> None:
    run_id = new_run()
    (folder / "a").mkdir()
    (folder / "a" / "b.txt").write_text("text")
    source = {"source_type": "code", "source": "{}", "schema": "{}", "profile": "{}"}
    for _ in range(2):
        outbox = opened(folder, run_id)
        if not logged_points(outbox.path):
            outbox.append("params", values={"p": "1"})
            outbox.append("tags", values={"t": "1", "gone": "1"})
            outbox.append("no_tag", name="gone")
            outbox.append("file", path="a/b.txt")
            outbox.append("file", path="a/removed_since.txt")
            outbox.append("data", dataset={"name": "train", "digest": "d"} | source, context="training")
            outbox.append("metrics", values={"m": 2.0}, step=3, time_ms=5, model_id=None)
        outbox.close(30)
        (folder / "outbox.sent").unlink()
    client = MlflowClient()
    run = client.get_run(run_id)
    assert run.data.params == {"p": "1"}
    assert (run.data.tags.get("t"), run.data.tags.get("gone")) == ("1", None)
    assert [file.path for file in client.list_artifacts(run_id, "a")] == ["a/b.txt"]
    assert [(d.dataset.name, d.tags[0].value) for d in run.inputs.dataset_inputs] == [("train", "training")]
    assert points(run_id, "m") == [(3, 2.0, 5)]


def test_an_outage_delays_delivery_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, tries = new_run(), []
    send = MlflowClient.log_batch

    def twice_unreachable(self: MlflowClient, *args: object, **named: object) -> object:
        tries.append(time.monotonic())
        if len(tries) <= 2:
            raise MlflowException("the store is away")
        return send(self, *args, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", twice_unreachable)
    outbox = opened(folder, run_id)
    started = time.monotonic()
    for step in range(3):
        measured(outbox, step, m=step)
    assert time.monotonic() - started < 0.4  # no waiting for the store
    outbox.close(30)
    assert [step for step, _, _ in points(run_id, "m")] == [0, 1, 2]


def test_messages_stay_in_the_file_during_an_outage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = new_run()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(MlflowException("it is away")))
        outbox = opened(folder, run_id)
        measured(outbox, 1, m=1, n=2)
        with pytest.raises(UndeliveredError, match=r"it is away.*outbox\.jsonl.*freqfilter sync"):
            outbox.close(1)
    assert points(run_id, "m") == []
    opened(folder, run_id).close(30)
    assert [(step, value) for step, value, _ in points(run_id, "n")] == [(1, 2)]


def test_a_message_that_the_store_refuses_is_reported_at_once(folder: Path) -> None:
    outbox = opened(folder, new_run())
    outbox.append("metrics", values={"a name with a + in it": 1}, step=1, time_ms=1, model_id=None)
    started = time.monotonic()
    with pytest.raises(UndeliveredError, match="did not accept all messages"):
        outbox.close(30)
    assert time.monotonic() - started < 20


def test_an_incomplete_last_line_is_removed_and_a_corrupt_line_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "outbox.jsonl"
    path.write_text('{"kind": "tags", "values": {}}\n{"kind": "ta')
    outbox = Outbox(path, None)
    outbox.append("end", status="KILLED")
    outbox.close(1)
    assert [message["kind"] for message in messages(path)] == ["tags", "end"]
    path.write_text('{"kind": "no_tag", "name": "x"}\nnonsense\n')
    with pytest.raises(UserError, match=r"corrupt line.*nonsense"):
        list(messages(path))
    with pytest.raises(UndeliveredError, match="corrupt"):
        Outbox(path, lambda _: None).close(10)


@pytest.mark.soak
@given(
    kinds=st.lists(st.sampled_from(["metrics", "tags", "file"]), max_size=40),
    failing=st.sets(st.integers(0, 40), max_size=6),
    reopened=st.sets(st.integers(0, 40), max_size=3),
)
@settings(max_examples=many(15, 300), deadline=None)
def test_messages_arrive_in_order_despite_failures_and_reopening(
    kinds: list[str], failing: set[int], reopened: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, arrived, tries = tmp_path_factory.mktemp("o") / "outbox.jsonl", [], iter(range(1000))

    def send(some: list[Message]) -> None:
        if next(tries) in failing:
            raise ConnectionError("away")
        arrived.extend(message["n"] for message in some)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("freqfilter.tracking.outbox.FIRST_PAUSE_S", 0.001)
        outbox = Outbox(path, send)
        for n, kind in enumerate(kinds):
            if n in reopened:
                outbox.close(10)
                outbox = Outbox(path, send)
            content = {"metrics": {"values": {}, "step": 1, "time_ms": 1, "model_id": None}, "tags": {"values": {}}}
            outbox.append(kind, n=n, **content.get(kind, {"path": "a"}))
        outbox.close(10)
    assert arrived == list(range(len(kinds)))


def test_messages_appended_by_several_threads_arrive_whole(tmp_path: Path) -> None:
    arrived: list[Message] = []
    outbox = Outbox(tmp_path / "outbox.jsonl", arrived.extend)
    long = "x" * 20_000  # more than a file's buffer holds

    def append(number: int) -> None:
        for n in range(25):
            outbox.append("tags", values={str(number): long}, n=n)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outbox.wait(30)
    numbers = [[message["n"] for message in arrived if str(number) in message["values"]] for number in range(4)]
    assert numbers == [list(range(25))] * 4
    outbox.close(10)


def test_wait_ignores_messages_appended_after_the_call(tmp_path: Path) -> None:
    appended, ended = threading.Event(), threading.Event()

    def send(some: list[Message]) -> None:
        if not ended.is_set():
            appended.clear()
            appended.wait(5)  # so that there is always something left to send

    outbox = Outbox(tmp_path / "outbox.jsonl", send)

    def append() -> None:
        while not ended.is_set():
            outbox.append("tags", values={})
            appended.set()
            time.sleep(0.002)  # lets the sender run

    outbox.append("tags", values={})
    thread = threading.Thread(target=append)
    thread.start()
    try:
        outbox.wait(10)
    finally:
        ended.set()
        appended.set()
        thread.join()
    outbox.close(60)


def test_close_ends_the_thread(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.jsonl", lambda _: None)
    outbox.append("tags", values={})
    outbox.close(10)
    deadline = time.monotonic() + 5
    while any(thread.name == "outbox" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
