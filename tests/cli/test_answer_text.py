"""What a model writes does not command the terminal; whoever reads it through a pipe gets it as it is."""

import json
import os
import subprocess
import sys

import pytest
from pexpect import EOF, fdpexpect

from pipezoo.cli.answer_text import visible

pty = pytest.importorskip("pty")

HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b31m\r\x7fb\tc\né日"

# The command, with a model that answers with HOSTILE.
CODE = f"""
from pipezoo.cli import loading
from pipezoo_core.request import GenerationStatus, TextGenerationOutput
from pipezoo_core.sampling_params import SamplingParams

class Hostile:
    sampling_params = SamplingParams()
    async def generate_async(self, prompt, **sampling):
        end = GenerationStatus.END_OF_SEQUENCE
        yield [TextGenerationOutput(request_id="r", text={HOSTILE!r}, tokens=[1], final_status=end)]

loading.load_model = lambda model, **settings: Hostile()
from pipezoo.cli.main import app
app()
"""
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8"}


def test_control_characters_become_visible():
    assert visible(HOSTILE) == r"a\x1b]0;title\x07\x1b[2J\x9b31m\x0d\x7fb" + "\tc\né日"
    assert all(visible(chr(code)) == chr(code) for code in [9, 10, *range(0x20, 0x7F), *range(0xA0, 0x3000)])


def on_terminal(*arguments):
    """What a command writes to standard output where that is a terminal, and standard input is not."""
    master, slave = pty.openpty()
    command = [sys.executable, "-c", CODE, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=slave, stderr=subprocess.PIPE, env=ENVIRONMENT)
    os.close(slave)
    screen = fdpexpect.fdspawn(master, encoding="utf-8", timeout=60)
    try:
        _, stderr = process.communicate(b"hello\n", timeout=60)
        assert process.returncode == 0, stderr
        screen.expect(EOF)
        return screen.before
    finally:
        process.kill()
        screen.close()


def piped(*arguments):
    command = [sys.executable, "-c", CODE, *arguments]
    return subprocess.run(command, input=b"hello\n", capture_output=True, check=True, env=ENVIRONMENT).stdout.decode()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["generate", "hostile", "-"], ["chat", "hostile"]], ids=lambda command: command[0])
def test_a_terminal_is_not_commanded_and_a_pipe_gets_all(command):
    shown = on_terminal(*command)
    assert shown.replace("\r\n", "\n") == visible(HOSTILE) + "\n"
    assert piped(*command) == HOSTILE + "\n"


def test_json_holds_no_control_characters_and_means_the_same():
    line = piped("generate", "hostile", "-", "--json")
    assert line == visible(line)
    assert json.loads(line)["text"] == HOSTILE
