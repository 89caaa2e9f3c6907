"""The command in processes of its own: other terminals and encodings, readers that go away, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals and pipes are other ones there")]

# The command, with a model that says what it was asked, in letters that not all encodings have, and goes on for long.
TALKER = """
import asyncio, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
from pipezoo import registry
from pipezoo_core.request import GenerationStatus, TextGenerationOutput
from pipezoo_core.sampling_params import SamplingParams

class Talker:
    sampling_params = SamplingParams()
    async def generate_async(self, prompt, **sampling):
        yield [TextGenerationOutput(request_id="r", text=f"{prompt} \\xe9 \\u65e5 \\U0001f600", tokens=[1])]
        while "endless" in str(prompt):
            await asyncio.sleep(0.001)
            yield [TextGenerationOutput(request_id="r", text="." * 1000 + "\\n", tokens=[1])]
        yield [TextGenerationOutput(request_id="r", final_status=GenerationStatus.END_OF_SEQUENCE)]

registry.load = lambda model, **settings: Talker()
from pipezoo.cli.main import app
app()
"""

SURROUNDINGS = [
    {"NO_COLOR": "1"},
    {"COLUMNS": "40"},
    {"PYTHONIOENCODING": "cp1252"},
    {"LANG": "C", "LC_ALL": "C"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    {"TERM": "dumb"},
]


def start(*arguments, code=TALKER, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **environment})


def run(*arguments, typed=b"", **environment):
    process = start(*arguments, **environment)
    stdout, stderr = process.communicate(typed, timeout=120)
    assert b"Traceback" not in stderr, stderr
    return process.returncode, stdout, stderr


# Many commands in one process, because each would import torch; what one says on stdout ends with its status.
ONE_BY_ONE = """
import json, sys
from pipezoo.cli.main import app
for command in json.loads(sys.argv[1]):
    try:
        app(command)
    except SystemExit as end:
        print(end="\\0%d\\0" % end.code, flush=True)
"""


def run_one_by_one(commands, **environment):
    """Returns the status of each command and what it says on stdout, and what all say on stderr."""
    process = start(json.dumps(commands), code=ONE_BY_ONE, **environment)
    stdout, stderr = process.communicate(timeout=120)
    *parts, rest = stdout.split(b"\0")
    assert (process.returncode, rest) == (0, b""), stderr
    return list(zip(map(int, parts[1::2]), parts[::2], strict=True)), stderr


@pytest.mark.parametrize("environment", SURROUNDINGS, ids=str)
def test_every_command_holds(tiny_folder, environment):
    folder = str(tiny_folder)
    why = ["why", folder]
    commands = [["-h"], ["plugins"], ["generate", "-h"], why, ["info", folder]]
    found, stderr = run_one_by_one([*commands, ["why", "./nowhere"]], **environment)
    assert [status for status, _ in found] == [0] * len(commands) + [1], stderr
    for command, (_, stdout) in zip(commands, found, strict=False):
        assert stdout
        assert b"\x1b[" not in stdout
        if environment.get("COLUMNS") and command != why:
            assert max(map(len, stdout.decode().splitlines())) <= 40
    assert b"nowhere" in stderr
    assert b"Traceback" not in stderr
    assert b"\x1b[" not in stderr


@pytest.mark.parametrize("environment", SURROUNDINGS, ids=str)
def test_answers_hold_whatever_can_be_shown(environment):
    asked = "über".encode("cp1252" if environment.get("PYTHONIOENCODING") == "cp1252" else "utf-8")
    if environment.get("PYTHONIOENCODING") == "ascii":
        asked = b"over"
    status, answer, stderr = run("generate", "tiny", "-", typed=asked, **environment)
    assert status == 0, stderr
    assert answer.startswith(asked)
    status, answers, stderr = run("chat", "tiny", typed=asked + b"\n" + asked, **environment)
    assert status == 0, stderr
    assert len(answers.splitlines()) == 2


def test_a_reader_that_goes_away_is_no_error():
    for command in (["generate", "tiny", "endless"], ["chat", "tiny"]):
        process = start(*command)
        process.stdin.write(b"endless\n")
        process.stdin.close()
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) != 0
        assert process.stderr.read() == b""
        process.stderr.close()


@pytest.mark.parametrize("command", [["generate", "tiny", "endless"], ["chat", "tiny"]])
def test_ctrl_c_ends_with_status_130_and_no_traceback(command):
    process = start(*command)
    process.stdin.write(b"endless\n")
    process.stdin.flush()
    assert len(process.stdout.read(3_000)) == 3_000  # several pieces: into the answer
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in stderr


@pytest.mark.parametrize("module", ["typer", "pipezoo.cli.main"])
def test_ctrl_c_is_as_quiet_while_the_command_is_read(module):
    """It comes when a module is looked for."""
    code = f"""
import sys
from importlib.abc import MetaPathFinder
class CtrlC(MetaPathFinder):
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, CtrlC())
import runpy
runpy.run_module("pipezoo", run_name="__main__")
"""
    process = start("plugins", code=code)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, b"")
