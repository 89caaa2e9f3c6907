"""A process that answers lines: what happens where it does not."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipezoo_core import line_process as line_process_module
from pipezoo_core.line_process import LineProcess, ProcessEndedError, ProcessNotStartedError

ECHO = """
import os, signal, sys, time
print("ready", flush=True)
for line in sys.stdin:
    if line == "end\\n":
        sys.exit(3)
    if line == "interrupt\\n":
        os.kill(os.getppid(), signal.SIGINT)
    if line in ("interrupt\\n", "sleep\\n"):
        time.sleep(600)
    print(line.strip()[::-1], flush=True)
"""


def made(program=ECHO, **settings):
    return LineProcess([sys.executable, "-c", program], **settings)


def test_questions_are_answered_in_turn():
    process = made()
    long = b"ab" * 10**6
    assert process.ask(b"abc\n") == b"cba\n"
    assert process.ask(long + b"\n", seconds=60) == long[::-1] + b"\n"
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: process.ask(f"{i}\n".encode()), range(100, 150)))
    assert found == [f"{i}"[::-1].encode() + b"\n" for i in range(100, 150)]


def test_any_number_of_files_may_be_open():
    """The numbers of the pipes are then above those that `select` can watch."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("the system allows too few files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    with contextlib.ExitStack() as files:
        files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while files.enter_context(Path(os.devnull).open("rb")).fileno() < 1030:
            pass
        process = made()
        assert process.ask(b"abc\n", seconds=60) == b"cba\n"
        with pytest.raises(TimeoutError):
            process.ask(b"sleep\n", seconds=0.1)


@pytest.mark.parametrize(
    ("line", "seconds", "error"), [(b"end\n", None, ProcessEndedError), (b"sleep\n", 0.1, TimeoutError)]
)
def test_a_question_that_is_not_answered_has_no_effect_on_the_next(line, seconds, error):
    process = made()
    for _ in range(2):
        with pytest.raises(error):
            process.ask(line, seconds=seconds)
        assert process._process is None
        assert process.ask(b"abc\n") == b"cba\n"


def test_an_interrupt_ends_the_process_whose_answer_would_come_later():
    process = made()
    process.ask(b"abc\n")
    before = process._process
    with pytest.raises(KeyboardInterrupt):
        process.ask(b"interrupt\n")
    assert before.returncode == -signal.SIGKILL
    assert process.ask(b"abc\n") == b"cba\n"


def test_a_process_that_has_ended_is_replaced():
    process = made()
    process.ask(b"abc\n")
    before = process._process
    os.kill(before.pid, signal.SIGKILL)
    before.wait()
    assert process.ask(b"abc\n") == b"cba\n"
    assert before.stdin.closed


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "import time; time.sleep(600)", "import os; os.close(1)"])
def test_a_process_that_is_never_ready(program, monkeypatch):
    monkeypatch.setattr(line_process_module, "_SECONDS_TO_START", 0.5)
    with pytest.raises(ProcessNotStartedError, match="exit status"):
        made(program).ask(b"abc\n")


@pytest.mark.parametrize("command", [["/nowhere/python"], [""], ["/"]])
def test_a_program_that_is_not_there(command):
    with pytest.raises(ProcessNotStartedError):
        LineProcess(command).ask(b"abc\n")


def test_the_process_ends_with_its_owner():
    process = made()
    process.ask(b"abc\n")
    inner = process._process
    del process
    assert inner.returncode == -signal.SIGKILL


def test_a_fork_has_a_process_of_its_own():
    """Even where a thread of the parent holds the lock; and the child's end leaves the parent's process alone."""
    program = textwrap.dedent("""
        import os, sys, threading
        from pipezoo_core.line_process import LineProcess

        process = LineProcess([sys.executable, "-c", sys.argv[1]])
        assert process.ask(b"abc\\n") == b"cba\\n"
        with process._lock:
            child = os.fork()
            if child == 0:
                assert process.ask(b"ab\\n") == b"ba\\n"
                sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert process.ask(b"xy\\n") == b"yx\\n"
    """)
    assert subprocess.run([sys.executable, "-W", "error", "-c", program, ECHO], timeout=60).returncode == 0
