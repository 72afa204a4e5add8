"""The send_queue: order, exactly once, limits, failures. The thread is led by events, never by sleeping."""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Iterator

import pytest

from es_service import errors
from es_service.actors.calls import Patience
from es_service.exchange.send_queue import SendQueue

LONG_S = 30.0  # a deadline that is never reached
SHORT_S = 0.05  # one that is meant to pass


class Server:
    """Keeps what arrives; can be held, and can be made to fail."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.most_of_one_call = 0
        self.seqs: list[tuple[int, int]] = []
        self.behind: list[int] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.failure: Exception | None = None

    def send(self, first: int, last: int, messages: list[bytes], num_behind: int) -> None:
        self.seqs.append((first, last))
        self.behind.append(num_behind)
        self.entered.set()
        assert self.go_on.wait(LONG_S)
        if self.failure is not None:
            raise self.failure
        self.messages += messages
        self.most_of_one_call = max(self.most_of_one_call, len(messages))

    @property
    def content(self) -> bytes:
        return b"".join(self.messages)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.go_on.set()


def put(send_queue: SendQueue, report: bytes) -> None:
    send_queue.put(1, report)


def numbered(count: int) -> list[bytes]:
    return [struct.pack("<I", number) for number in range(count)]


def test_everything_arrives_once_and_in_order(server: Server) -> None:
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    reports = numbered(5000)
    for seq, report in enumerate(reports):
        send_queue.put(seq, report)
    send_queue.flush()
    assert server.content == b"".join(reports)
    assert (server.seqs[0][0], server.seqs[-1][1]) == (0, 4999)
    assert all(last + 1 == first for (_, last), (first, _) in itertools.pairwise(server.seqs))
    send_queue.close()


def test_flushing_between_puts_keeps_the_order(server: Server) -> None:
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    reports = numbered(60)
    for number, report in enumerate(reports):
        put(send_queue, report)
        if number % 7 == 0:
            send_queue.flush()
            assert server.content == b"".join(reports[: number + 1])
    send_queue.flush()
    assert server.content == b"".join(reports)
    send_queue.close()


def test_flushing_an_empty_send_queue_returns(server: Server) -> None:
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    send_queue.flush()
    assert server.messages == []
    send_queue.close()


def test_small_reports_travel_together_and_stay_below_the_message_size(server: Server) -> None:
    server.go_on.clear()
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    for _ in range(300):
        put(send_queue, b"x" * 1000)
    server.go_on.set()
    send_queue.flush()
    assert len(server.content) == 300_000
    assert len(server.messages) < 30
    assert max(len(message) for message in server.messages) <= 96 << 10
    send_queue.close()


def test_what_waits_meanwhile_comes_in_one_call(server: Server) -> None:
    server.go_on.clear()
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    put(send_queue, b"x" * (96 << 10))  # a message of its own
    assert server.entered.wait(LONG_S)
    for _ in range(5):
        put(send_queue, b"x" * (50 << 10))
    server.go_on.set()
    send_queue.flush()
    assert server.behind == [0, 0]
    assert server.most_of_one_call == 5
    send_queue.close()


def test_a_call_brings_no_more_than_so_many_messages(server: Server) -> None:
    server.go_on.clear()
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    put(send_queue, b"x" * (96 << 10))
    assert server.entered.wait(LONG_S)
    for seq in range(2, 22):
        send_queue.put(seq, b"x" * (50 << 10))
    server.go_on.set()
    send_queue.flush()
    assert server.seqs == [(1, 1), (2, 9), (10, 17), (18, 21)]
    assert server.behind == [0, 12, 4, 0]
    send_queue.close()


def test_a_report_larger_than_a_message_goes_alone(server: Server) -> None:
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    put(send_queue, b"a" * (200 << 10))
    put(send_queue, b"b")
    send_queue.flush()
    assert [message[:1] for message in server.messages] == [b"a", b"b"]
    send_queue.close()


def test_what_is_held_is_bounded_and_a_full_send_queue_says_so(server: Server) -> None:
    server.go_on.clear()
    send_queue = SendQueue(server.send, lambda: Patience(SHORT_S))
    large = b"x" * (16 << 20)
    for _ in range(4):
        put(send_queue, large)
    assert server.entered.wait(LONG_S)
    with pytest.raises(errors.ServerUnavailableError, match=r"make room .* within 0\.05 s: 67,108,864 bytes"):
        put(send_queue, b"one more")
    server.go_on.set()
    patient = threading.Thread(target=send_queue.close)
    patient.start()
    patient.join(LONG_S)
    assert not patient.is_alive()
    assert b"one more" not in server.content


def test_room_made_lets_a_waiting_put_go_on(server: Server) -> None:
    server.go_on.clear()
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    large = b"x" * (32 << 20)
    put(send_queue, large)
    put(send_queue, large)
    done = threading.Event()

    def put_one_more() -> None:
        put(send_queue, b"last")
        done.set()

    assert server.entered.wait(LONG_S)
    threading.Thread(target=put_one_more, daemon=True).start()
    assert not done.is_set()
    server.go_on.set()
    assert done.wait(LONG_S)
    send_queue.flush()
    assert server.content[-4:] == b"last"
    assert len(server.content) == (64 << 20) + 4
    send_queue.close()


def test_flush_gives_up_at_its_deadline_and_can_be_tried_again(server: Server) -> None:
    server.go_on.clear()
    send_queue = SendQueue(server.send, lambda: Patience(SHORT_S))
    put(send_queue, b"12345")
    with pytest.raises(errors.ServerUnavailableError, match=r"flush the send queue within 0\.05 s: 5 bytes still wait"):
        send_queue.flush()
    assert server.entered.wait(LONG_S)
    server.go_on.set()
    for _ in range(1000):
        try:
            send_queue.flush()
        except errors.ServerUnavailableError:
            continue
        break
    assert server.messages == [b"12345"]
    send_queue.close()


@pytest.mark.parametrize(
    "failure", [errors.ServerRestartedError("gone"), RuntimeError("unforeseen")], ids=["ours", "any"]
)
def test_a_failed_send_is_raised_at_the_next_call_and_at_every_one_after(server: Server, failure: Exception) -> None:
    server.failure = failure
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    put(send_queue, b"a")
    for _ in range(2):
        with pytest.raises(type(failure)) as caught:
            send_queue.flush()
        assert caught.value is failure
        with pytest.raises(type(failure)):
            put(send_queue, b"b")
    assert server.messages == []
    send_queue.close()


def test_a_failure_reaches_a_put_that_waits_for_room(server: Server) -> None:
    server.go_on.clear()
    server.failure = errors.ServerUnavailableError("no answer")
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    put(send_queue, b"x" * (64 << 20))
    caught: list[Exception] = []

    def put_one_more() -> None:
        try:
            put(send_queue, b"y")
        except errors.EsServiceError as error:
            caught.append(error)

    waiting = threading.Thread(target=put_one_more)
    waiting.start()
    server.go_on.set()
    waiting.join(LONG_S)
    assert caught == [server.failure]
    send_queue.close()


def test_nothing_is_sent_after_a_failure(server: Server) -> None:
    send_queue = SendQueue(server.send, lambda: Patience(LONG_S))
    server.failure = errors.ServerRestartedError("gone")
    put(send_queue, b"a")
    with pytest.raises(errors.ServerRestartedError):
        send_queue.flush()
    server.failure = None
    with pytest.raises(errors.ServerRestartedError):
        put(send_queue, b"b")
    send_queue.close()
    assert server.messages == []


def test_close_ends_the_thread_and_drops_what_waits(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("es_service.exchange.send_queue._CLOSE_S", SHORT_S)
    server.go_on.clear()
    others = set(threading.enumerate())
    send_queue = SendQueue(server.send, lambda: Patience(SHORT_S))
    (thread,) = set(threading.enumerate()) - others
    put(send_queue, b"x" * (96 << 10))
    assert server.entered.wait(LONG_S)
    put(send_queue, b"dropped")
    send_queue.close()  # gives up waiting for the send that hangs
    assert thread.is_alive()
    server.go_on.set()
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert server.content == b"x" * (96 << 10)
