"""`pipezoo chat` at a terminal, as a person uses it: what is shown, what is kept, and what the keys do."""

import re
import stat

import pytest
from cli.terminals import CTRL_C, CTRL_D, PASTE, SENT, UP, terminal

pytestmark = pytest.mark.slow


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
