"""A chat at a pseudo-terminal: what a person types, and what is shown."""

import json
import os
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
