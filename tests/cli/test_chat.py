"""`pipezoo chat` with lines on standard input: each is a message or a command, and only answers come out."""

import json
import os

import pytest
from typer.testing import CliRunner

from pipezoo import registry
from pipezoo.cli.main import app

SHORT = ["--max-new-tokens", "5", "--temperature", "0"]


@pytest.fixture(scope="module")
def llm(tiny_folder):
    return registry.load(tiny_folder, dtype="float32", device="cpu", kv_cache_memory="4MiB", max_length=200)


@pytest.fixture
def chat(llm, monkeypatch):
    """Runs the command, with a model that is loaded once for all tests."""
    monkeypatch.setattr(registry, "load", lambda model, **settings: llm)

    def run(*lines, arguments=SHORT, status=0):
        text = lines[0] if isinstance(lines[0], bytes) else "".join(f"{line}\n" for line in lines)
        result = CliRunner().invoke(app, ["chat", "tiny", *arguments], input=text)
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture
def answers(llm):
    """What the model says to a chat, by the pipeline itself."""

    def answer(*texts, system=None):
        messages = [{"role": "system", "content": system}] if system else []
        for text in texts:
            messages.append({"role": "user", "content": text})
            answered = llm.chat(messages, max_new_tokens=5, temperature=0.0)
            messages.append({"role": "assistant", "content": answered.text})
        return messages

    return answer


def contents(messages):
    text = "".join(f"{message['content']}\n" for message in messages if message["role"] == "assistant")
    return text.replace("\r\n", "\n")  # as the runner of commands does


def test_only_answers_come_out_and_each_knows_those_before(chat, answers):
    result = chat("hello", "", "  ", "hello", "/exit", "never read")
    assert result.stdout == contents(answers("hello", "hello"))
    assert result.stderr == ""


def test_a_last_line_may_lack_its_break(chat, answers):
    result = chat(b"hello\r\nhi")
    assert result.stdout == contents(answers("hello", "hi"))


def test_three_quotes_hold_lines_together(chat, answers):
    lines = ['"""', "hello", "", "/exit is no command here", '"""', '"""hi"""', '"""', "the end comes first"]
    result = chat(*lines)
    assert result.stdout == contents(answers("hello\n\n/exit is no command here", "hi", "the end comes first"))


def test_reset_keeps_what_the_model_is_told(chat, answers):
    result = chat("hello", "/reset", "hi", arguments=[*SHORT, "--system", "be brief"])
    expected = contents(answers("hello", system="be brief")) + contents(answers("hi", system="be brief"))
    assert result.stdout == expected


def test_system_changes_it_in_the_middle(chat, answers, tmp_path):
    path = tmp_path / "chat.json"
    chat("/system be brief", "hello", f"/save {path}")
    assert json.loads(path.read_text())["messages"] == answers("hello", system="be brief")
    chat(f"/load {path}", "/system be long", f"/save {path}")
    assert json.loads(path.read_text())["messages"][:2] == [
        {"role": "system", "content": "be long"},
        {"role": "user", "content": "hello"},
    ]
    chat(f"/load {path}", "/system", f"/save {path}")
    assert json.loads(path.read_text())["messages"] == answers("hello", system="be brief")[1:]


def test_set_shows_and_changes_what_is_in_force(chat):
    lines = ["/set", "/set temperature 0.7", "/set seed none", '/set stop ["a", "b"]', "/set regex [0-9]{4}", "/set"]
    result = chat(*lines)
    shown = result.stderr.splitlines()
    half = len(shown) // 2
    before, changes, after = shown[: half - 2], shown[half - 2 : half + 2], shown[half + 2 :]
    assert len(before) == len(after)
    assert {"  temperature = 0.0", "  max_new_tokens = 5", "  seed = None"} <= set(before)
    assert changes == ["  temperature = 0.7", "  seed = None", "  stop = ('a', 'b')", "  regex = [0-9]{4}"]
    assert set(changes) <= set(after)


def test_settings_hold_from_the_next_answer_on(chat):
    result = chat("hello", '/set grammar start: "yes"', "hello")
    assert result.stdout.splitlines()[-1] == "yes"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "Did you mean '/reset'?"),
        ("/frobnicate now", 'put it between """'),
        ("/", "there is no command '/'"),
        ("/reset now", "/reset takes nothing behind it (found: now)"),
        ("/set temperature", "/set temperature lacks a value"),
        ("/set regex [0-9", "regex"),
        ("/set temperature -1", "setting 'temperature' is not valid (found: -1"),
        ("/set temperature NaN", "setting 'temperature' is not valid"),
        ("/set frobnicate 1", "unknown setting 'frobnicate'"),
        ("/save", "/save needs the name of a file"),
        ("/load nowhere.json", "nowhere.json cannot be read"),
        ("/load " + "[" * 300, "cannot be read"),
    ],
)
def test_a_command_that_fails_changes_nothing_and_reaches_no_model(chat, answers, line, message):
    result = chat("hello", line, "hello", status=1)
    assert result.stdout == contents(answers("hello", "hello"))
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.encode()) < 1024


def test_help_names_every_command(chat):
    shown = chat("/help").stderr
    assert all(name in shown for name in ("/help", "/reset", "/system", "/set", "/save", "/load", "/exit", '"""'))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"messages": {}}',
        b'{"messages": [1]}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": 1}]}',
        b"\xff\xfe\xff",
        b"[" * 100_000,
    ],
)
def test_what_is_no_chat_is_neither_loaded_nor_overwritten(chat, answers, tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    result = chat("hello", f"/load {path}", f"/save {path}", "hello", status=1)
    assert result.stdout == contents(answers("hello", "hello"))
    assert result.stderr.count(f"{path} is not a chat") == 2
    assert path.read_bytes() == content


def test_a_chat_is_saved_over_itself_and_goes_on(chat, answers, tmp_path):
    path = tmp_path / "über.json"
    chat(f"/save {path}", "hello", f"/save {path}")
    result = chat(f"/load {path}", "hello", f"/save {path}")
    assert contents(answers("hello")) + result.stdout == contents(answers("hello", "hello"))
    assert json.loads(path.read_text("utf-8"))["messages"] == answers("hello", "hello")
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["nowhere/chat.json", "a\0b", "x" * 300])
def test_what_cannot_be_written_is_said_and_leaves_nothing_behind(chat, tmp_path, name):
    result = chat(f"/save {tmp_path}/{name}", status=1)
    assert "cannot be" in result.stderr
    assert os.listdir(tmp_path) == []


def test_an_answer_that_fails_keeps_the_chat(chat):
    result = chat("hello", "hello " * 200, "/reset", "hi", status=1)
    assert "too long for the model's context" in result.stderr
    assert "/reset begins anew." in result.stderr
    assert len(result.stdout.splitlines()) >= 2


def test_a_line_that_is_no_text_keeps_the_chat(chat, answers):
    result = chat(b"hello\n\xff\nhello\n", status=1)
    assert result.stdout == contents(answers("hello", "hello"))
    assert "a line of standard input is not UTF-8 text (found: byte 0xff at offset 0)" in result.stderr


def test_of_several_answers_the_first_goes_on(chat):
    sampled = ["/set temperature 1", "/set seed 1"]
    alone = chat(*sampled, "hello", "hello").stdout
    assert chat(*sampled, "/set n 2", "hello", "hello").stdout == alone


def test_verbose_says_how_fast(chat):
    assert "5 tokens, the first after " in chat("hello", arguments=[*SHORT, "--verbose"]).stderr
