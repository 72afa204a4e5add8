"""What a first and a second signal do, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

HEAD = """
import os, signal, subprocess, sys, time
from es_service import stopping

def started():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)

def wait():
    while True:
        time.sleep(0.05)
"""
PLAIN = """
with stopping.Stops() as stops:
    try:
        started()
        wait()
    except stopping.Stopped as stopped:
        assert stops.asked == stopped.number
        stops.end_children()
        print("stopped by", stopped.number, flush=True)
        {then}
"""
IN_ORDER = """
asked = []
with stopping.Stops() as stops:
    started()
    with stopping.in_order(asked.append):
        print("ready", flush=True)
        while not asked:
            time.sleep(0.05)
        print("asked", asked, flush=True)
        {then}
    stops.end_children()
"""
BUSY = """
with stopping.Stops():
    begun = False
    while True:  # what no exception gets out of
        try:
            if not begun:
                begun = True
                started()
            wait()
        except BaseException:
            print("busy", flush=True)
"""
RELIED = """
with stopping.Stops() as stops:
    started()
    stopping.rely_on_children()
    with stopping.in_order(lambda number: None):
        print("ready", flush=True)
        wait()
"""
FORKED = """
with stopping.Stops() as stops:
    started()
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"x")
        wait()
    os.read(hear, 1)  # the child is past its beginning, where its parent's handlers are taken away
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    time.sleep(0.3)
    print(stops.asked, flush=True)
    stops.end_children()
"""


Start = Callable[..., tuple[subprocess.Popen[str], int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts a program and returns it, with the number of its child."""
    processes: list[subprocess.Popen[str]] = []

    def begin(body: str, then: str = "pass") -> tuple[subprocess.Popen[str], int]:
        code = HEAD + body.replace("{then}", then)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        processes.append(process)
        return process, int(line(process))

    yield begin
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def send_until_it_ends(process: subprocess.Popen[str], number: int) -> None:
    """Signals that come within 0.2 s of the first count as one with it, and a busy machine hears of the first late."""
    give_up = time.monotonic() + 20
    while process.poll() is None:
        assert time.monotonic() < give_up
        process.send_signal(number)
        time.sleep(0.1)


def has_ended(pid: int) -> bool:
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_raises_and_the_children_end(number: signal.Signals, start: Start) -> None:
    process, child = start(PLAIN)
    process.send_signal(number)
    assert line(process) == f"stopped by {int(number)}\n"
    assert process.wait(30) == 0
    assert has_ended(child)


def test_the_second_signal_ends_all_of_it_whatever_the_first_is_at(start: Start) -> None:
    process, child = start(BUSY)
    process.send_signal(signal.SIGINT)
    assert line(process) == "busy\n"
    send_until_it_ends(process, signal.SIGTERM)
    assert process.returncode == 130
    assert has_ended(child)


def test_signals_close_together_are_one(start: Start) -> None:
    """As `timeout` sends them: to the process, and to its group."""
    process, child = start(PLAIN)
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    assert line(process) == "stopped by 15\n"
    assert process.wait(30) == 0
    assert has_ended(child)


def test_what_ends_in_order_is_asked_once_and_a_second_signal_ends_it(start: Start) -> None:
    process, child = start(IN_ORDER)
    assert line(process) == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert line(process) == "asked [15]\n"
    assert process.wait(30) == 0
    assert has_ended(child)
    process, child = start(IN_ORDER, then="wait()")
    assert line(process) == "ready\n"
    process.send_signal(signal.SIGINT)
    assert line(process) == "asked [2]\n"
    send_until_it_ends(process, signal.SIGINT)
    assert process.returncode == 130
    assert has_ended(child)


def test_without_what_it_relies_on_it_ends_at_once(start: Start) -> None:
    process, child = start(RELIED)
    assert line(process) == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(20) == 143
    assert has_ended(child)


def test_a_signal_to_a_forked_child_is_none_of_the_parents(start: Start) -> None:
    process, child = start(FORKED)
    assert line(process) == "None\n"
    assert process.wait(30) == 0
    assert has_ended(child)
