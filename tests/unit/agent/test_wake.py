"""Waking and stopping, from other threads and from signal handlers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

from flannel_ebpf.agent.wake import Stop, Wake


def test_what_was_asked_for_before_a_pass_is_answered_by_it() -> None:
    wake = Wake()
    for _ in range(3):
        wake.for_leases()
    wake.for_all()
    assert wake.take()
    assert not wake.take()


def test_a_wait_ends_at_once_and_keeps_what_was_asked() -> None:
    wake = Wake()
    threading.Timer(0.05, wake.for_all).start()
    begun = time.monotonic()
    wake.wait(10)
    assert time.monotonic() - begun < 9
    assert wake.take()


def test_a_wait_has_an_end() -> None:
    wake = Wake()
    wake.wait(0.01)
    wake.wait(-1)
    assert not wake.take()


def test_everybody_who_waits_hears_the_word_to_stop() -> None:
    stop = Stop()
    threads = [threading.Thread(target=stop.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert not stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert stop.wait(10)
    assert stop.is_set()


SIGNALLED = """
import signal
from flannel_ebpf.agent.wake import Stop, Wake
wake, stop, seen = Wake(), Stop(), 0
def note(*_):
    global seen
    seen += 1
    wake.for_all()
signal.signal(signal.SIGUSR1, note)
signal.signal(signal.SIGTERM, lambda *_: (stop.set(), wake.for_all()))
print("go", flush=True)
while not stop.is_set():
    wake.take()
    wake.wait(10)
print(seen)
"""


def test_signals_in_the_middle_of_it_never_hang_it() -> None:
    """threading.Event does, within a handful of signals: set() takes the lock that wait() holds."""
    child = subprocess.Popen([sys.executable, "-c", SIGNALLED], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "go\n"
    for _ in range(20_000):
        os.kill(child.pid, signal.SIGUSR1)
    child.terminate()
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert int(output) > 0
