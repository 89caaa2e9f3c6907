"""`pipezoo chat` at a terminal, as a person uses it: what is shown, what is kept, and what the keys do."""

import json
import os
import re
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest
from pexpect import EOF, fdpexpect

pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
PROMPT = r"> \Z|>.*\x1b\[\?25h"  # and then, where the terminal can, the cursor is shown
SENT = "\x1b[?2004l"  # what a terminal pastes is the program's again
PASTE = "\x1b[200~{}\x1b[201~"

# Ctrl-C goes to whoever has the terminal; and whoever runs the tests in the background ignores it.
AT_TERMINAL = """
import fcntl, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""

# The command, with a model that answers at once with what it was told, and one that does not end by itself.
ECHO = """
import asyncio, json
from pipezoo.cli import loading
from pipezoo_core.request import TextGenerationOutput
from pipezoo_core.sampling_params import SamplingParams

class Echo:
    sampling_params = SamplingParams()
    async def generate_async(self, messages, lora, **sampling):
        told = [message["content"] for message in messages]
        yield [TextGenerationOutput(request_id="r", text="ANSWER " + json.dumps(told), tokens=[1])]
        while told[-1] == "endless":
            await asyncio.sleep(0.01)
            yield [TextGenerationOutput(request_id="r", text=".", tokens=[1])]

loading.load_model = lambda model, **settings: Echo()
from pipezoo.cli.main import app
app(["chat", "echo"])
"""


class Terminal:
    def __init__(self, process, screen, before):
        self.process = process
        self.before = before  # what was shown until the chat began
        self._screen = screen

    def type(self, *keys):
        for key in keys:
            self._screen.send(key)

    def answer(self):
        """What the model was told for the next answer."""
        self._screen.expect(r"ANSWER ([^\r\n]*)\r\n")
        told = json.loads(self._screen.match[1])
        self.asks()
        return told

    def shows(self, text):
        self._screen.expect_exact(text)

    def asks(self):
        self._screen.expect(PROMPT)

    def ends(self):
        self._screen.expect(EOF)
        assert self.process.wait(60) == 0


@contextmanager
def terminal(state, code=ECHO, **environment):
    """Runs a chat at a pseudo-terminal that keeps its history in a folder."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    env = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(state), **environment}
    command = [sys.executable, "-c", AT_TERMINAL + code]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
    os.close(slave)
    screen = fdpexpect.fdspawn(master, encoding="utf-8", timeout=60)
    screen.delaybeforesend = None
    try:
        screen.expect_exact("Ctrl-D ends.")
        before = screen.before
        screen.expect(PROMPT)
        yield Terminal(process, screen, before)
    finally:
        process.kill()
        screen.close()  # first: at a terminal that nobody reads, a process takes half a minute to end
        process.wait(60)


def test_a_line_is_edited_and_answered(tmp_path):
    with terminal(tmp_path) as chat:
        chat.type("helo", "\x1b[D", "l", "\r")
        assert chat.answer() == ["hello"]
        chat.type("again\r")
        assert chat.answer() == ["hello", 'ANSWER ["hello"]', "again"]
        chat.type(CTRL_D)
        chat.ends()


def test_several_lines_are_pasted_or_quoted(tmp_path):
    with terminal(tmp_path) as chat:
        chat.type(PASTE.format("one\ntwo\n/exit"), "\r")
        assert chat.answer() == ["one\ntwo\n/exit"]
        chat.type("/reset\r")
        chat.shows("begins anew")
        chat.asks()
        chat.type('"""three\r', "\r", 'four"""\r')
        assert chat.answer() == ["three\n\nfour"]
        chat.type("/exit\r")
        chat.ends()


def test_ctrl_c_stops_the_answer_and_then_throws_the_line_away(tmp_path):
    with terminal(tmp_path) as chat:
        chat.type("endless\r")
        chat.shows('ANSWER ["endless"]...')
        chat.type(CTRL_C)
        chat.shows(" …\r\n")
        chat.asks()
        chat.type("thrown away", CTRL_C)
        chat.asks()
        chat.type("hello\r")
        question, begun, last = chat.answer()
        assert (question, last) == ("endless", "hello")
        assert re.fullmatch(r'ANSWER \["endless"\]\.+', begun)
        chat.type(CTRL_D)
        chat.ends()


def test_a_command_that_is_not_there_keeps_the_chat(tmp_path):
    with terminal(tmp_path) as chat:
        chat.type("/rest\r")
        chat.shows("Did you mean '/reset'?")
        chat.asks()
        chat.type("hello\r")
        assert chat.answer() == ["hello"]
        chat.type(CTRL_D)
        chat.ends()


def test_the_history_outlives_the_chat_and_is_for_nobody_else(tmp_path):
    with terminal(tmp_path) as chat:
        chat.type("remember\r")
        chat.answer()
        chat.type(CTRL_D)
        chat.ends()
    (history,) = (tmp_path / "pipezoo").iterdir()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    history.chmod(0o644)
    with terminal(tmp_path) as chat:
        chat.type(UP, "\r")
        assert chat.answer() == ["remember"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_without_a_folder_that_can_be_written_a_chat_has_no_history(tmp_path):
    (tmp_path / "file").touch()
    with terminal(tmp_path / "file") as chat:
        chat.type("hello\r")
        assert chat.answer() == ["hello"]
        chat.type(UP, "\r")
        assert chat.answer()[-1] == "hello"
        chat.type(CTRL_D)
        chat.ends()


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {"LANG": "C", "LC_ALL": "C"}])
def test_whatever_the_terminal(tmp_path, environment):
    with terminal(tmp_path, **environment) as chat:
        chat.type("hello\r")
        assert chat.answer() == ["hello"]
        chat.type("/frobnicate\r")
        chat.shows("there is no command")
        chat.asks()
        chat.type("/exit\r")
        chat.ends()


# The command with a real model that takes its time, says so, and does not end by itself.
SLOW = """
import sys, time
from pipezoo_core.pipeline import TextGenerationPipeline
from pipezoo_core.decoder import DecoderPipelineModel
execute, generate = DecoderPipelineModel.execute, TextGenerationPipeline.generate_async
def slowly(self, inputs):
    print("[step]", file=sys.stderr, flush=True)
    time.sleep(0.2)
    return execute(self, inputs)
DecoderPipelineModel.execute = slowly
TextGenerationPipeline.generate_async = lambda self, chat, **sampling: generate(
    self, chat, ignore_eos=True, **sampling
)
from pipezoo.cli.main import app
app(["chat", {folder!r}, "--dtype", "float32", "--device", "cpu", "--kv-cache-memory", "4MiB", "--verbose"])
"""


@pytest.mark.slow
def test_ctrl_c_stops_a_model(tiny_folder, tmp_path):
    with terminal(tmp_path, SLOW.format(folder=str(tiny_folder))) as chat:
        assert "loading and packing weights" in chat.before
        for _ in range(2):  # what was stopped has left nothing behind that is in the way
            chat.type("hello\r")
            chat.shows(SENT)
            for _ in range(3):  # into the answer
                chat.shows("[step]")
            chat.type(CTRL_C)
            chat.shows(" …\r\n")
            chat.shows(" tokens/s")
            chat.asks()
        chat.type("/exit\r")
        chat.ends()
