"""gpt-oss's answers: what openai-harmony 0.0.8 reads in each header, and chats for its template."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from functools import cache

import pytest
from core.chat_responses.family_chats import FAMILY_CHATS, TOOLS
from transformers.utils.chat_parsing import parse_response

from pipezoo_core.chat_responses import ChatResponse, ToolCall, Tools
from pipezoo_core.chat_responses.families import FAMILIES

CHAT = FAMILY_CHATS["gpt-oss"]
FORMAT = CHAT.format
CALL = ToolCall("weather", '{"city": "Rome < 3"}')
# header of a message -> the part of an answer that its text is
HEADERS = {
    "<|channel|>analysis<|message|>": "reasoning",
    "<|channel|>analysis code<|message|>": "reasoning",
    "<|channel|>analysis to=python <|constrain|>code<|message|>": "reasoning",
    "<|channel|>final<|message|>": "content",
    "<|channel|>final <|constrain|>json<|message|>": "content",
    "<|channel|>final json<|message|>": "content",
    "<|channel|>commentary<|message|>": "content",
    "<|channel|>commentary to=browser.search code<|message|>": "content",
    " to=browser.search<|channel|>commentary json<|message|>": "content",
    "<|message|>": "content",
    "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>": "call",
    "<|channel|>commentary to=functions.weather<|constrain|>json<|message|>": "call",
    "<|channel|>commentary to=functions.weather json<|message|>": "call",
    "<|channel|>commentary to=functions.weather<|message|>": "call",
    "<|channel|>analysis to=functions.weather<|message|>": "call",
    "<|channel|>analysis to=functions.weather code<|message|>": "call",
    " to=functions.weather<|channel|>commentary <|constrain|>json<|message|>": "call",
    " to=functions.weather<|channel|>commentary json<|message|>": "call",
    " to=functions.weather<|channel|>analysis json<|message|>": "call",
}
ENDS = {"reasoning": "<|end|>", "content": "<|end|>", "call": "<|call|>"}


def _texts(seed):
    """Returns messages as headers and texts, in any order."""
    draw = random.Random(seed)
    texts = {"reasoning": ["Rome?", "so\n< 3"], "content": ["Well.", "a <b>\n{}", " x \n"], "call": [CALL.arguments]}
    headers = draw.choices(list(HEADERS), k=draw.randint(1, 5))
    return [(header, draw.choice(texts[HEADERS[header]])) for header in headers]


def _answer(messages):
    return "<|start|>assistant".join(header + text + ENDS[HEADERS[header]] for header, text in messages)


def _response(messages):
    parts = {part: [text for header, text in messages if HEADERS[header] == part] for part in ENDS}
    calls = tuple(ToolCall(CALL.name, text) for text in parts["call"])
    return ChatResponse("\n".join(parts["content"]), "\n".join(parts["reasoning"]), calls)


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_says_what_its_text_is(header):
    text = CALL.arguments if HEADERS[header] == "call" else "Rome is < 3\nor so."
    messages = [(header, text)]

    assert FORMAT.response(_answer(messages), TOOLS, prompt=CHAT.prompt) == _response(messages)


def in_pieces(text):
    """Reads an answer character by character, which is what it is read as in one piece."""
    parser = FORMAT.parser(TOOLS, prompt=CHAT.prompt)
    found = ChatResponse.joined([*map(parser.feed, text), parser.finish()])
    assert FORMAT.parser(TOOLS, prompt=CHAT.prompt).whole(text) == found
    return found


@pytest.mark.parametrize("end", ["", "<|return|>", "<|end|>", "<|call|>"])
@pytest.mark.parametrize("text", ["Rome.", "1 < 2, and\n<b>", "Rome " * 100])
def test_text_without_any_header_is_content(text, end):
    assert in_pieces(text + end) == ChatResponse(text)
    thought = "<|channel|>analysis<|message|>so<|end|><|start|>assistant"
    assert in_pieces(thought + text + end) == ChatResponse(text, "so")


@pytest.mark.parametrize("end", ["<|start|>assistant", ""])
@pytest.mark.parametrize("header", [header for header in HEADERS if header.startswith("<|channel|>")])
def test_a_message_behind_text_without_a_header_is_read(header, end):
    message = f"{header}{CALL.arguments}{ENDS[HEADERS[header]]}"
    read = _response([(header, CALL.arguments)])
    for length in (257, 5000) if "json<" in header else (257,):
        text = "a" * length
        content = f"{text}\n{read.content}" if read.content else text
        assert in_pieces(text + end + message) == ChatResponse(content, read.reasoning, read.tool_calls)
    short = FORMAT.response("a" * 256 + end + message, TOOLS, prompt=CHAT.prompt)
    assert short == read  # it is taken for a header


def test_a_header_that_is_cut_is_no_content():
    assert in_pieces(" to=functions.wea") == ChatResponse()
    assert in_pieces("<|channel|>fin") == ChatResponse()


@pytest.mark.parametrize(("behind", "left"), [(" x", "x"), (' {"city": "Paris"}', '{"city": "Paris"}'), ("} ]\n}", "")])
def test_what_stands_behind_the_arguments_of_a_call_is_content(behind, left):
    call = f"<|channel|>commentary to=functions.weather json<|message|>{CALL.arguments}"
    assert in_pieces(f"{call}{behind}<|call|>") == ChatResponse(left, "", (CALL,))
    final = "<|channel|>final<|message|>Hi<|end|><|start|>assistant"
    assert in_pieces(f"{final}{call}{behind}<|call|>") == ChatResponse(f"Hi\n{left}".strip(), "", (CALL,))
    both = f"{call}<|call|><|start|>assistant{call}{behind}<|call|>"
    assert FORMAT.response(both, replace(TOOLS, may_call_several=False), prompt=CHAT.prompt) == ChatResponse(
        "", "", (CALL,)
    )


@pytest.mark.parametrize("seed", range(40))
def test_messages_in_any_order_and_in_any_pieces_are_read(seed):
    messages, draw = _texts(seed), random.Random(seed)
    answer = _answer(messages)
    parser = FORMAT.parser(TOOLS, prompt=CHAT.prompt)
    cuts = sorted(draw.choices(range(len(answer)), k=draw.choice([3, 30, len(answer)])))
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]

    assert ChatResponse.joined([*map(parser.feed, pieces), parser.finish()]) == _response(messages)


@pytest.mark.parametrize("header", HEADERS)
def test_transformers_reads_the_template_the_same(header):
    messages = [(header, CALL.arguments), ("<|channel|>final<|message|>", "Well.")]

    theirs = parse_response(_answer(messages), dict(FORMAT.family.response), prefix=CHAT.prompt, tools=[*TOOLS.given])
    ours = FORMAT.response(_answer(messages), TOOLS, prompt=CHAT.prompt)

    assert (ours.content, ours.reasoning) == (theirs.get("content", ""), theirs.get("reasoning_content", ""))
    assert [(call.name, json.loads(call.arguments)) for call in ours.tool_calls] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in theirs.get("tool_calls", [])
    ]


@pytest.mark.parametrize("header", HEADERS)
def test_an_answer_that_is_cut_behind_any_token_shows_no_marks(header):
    messages = [("<|channel|>analysis<|message|>", "Rome?"), (header, CALL.arguments)]
    answer = _answer(messages)
    ends = [match.end() for match in re.finditer(r"<\|\w+\|>|.", answer)]

    for end in ends:
        response = FORMAT.response(answer[:end], TOOLS, prompt=CHAT.prompt)
        assert "<|" not in response.content + response.reasoning
        assert {call.name for call in response.tool_calls} <= {CALL.name}
        assert all(CALL.arguments.startswith(call.arguments) for call in response.tool_calls)


@pytest.mark.parametrize("space", ["", " \n"])
@pytest.mark.parametrize("header", [header for header, part in HEADERS.items() if part == "call"])
def test_a_call_without_arguments_has_empty_ones_and_one_that_is_cut_has_none(header, space):
    for end, arguments in (("<|call|>", "{}"), ("<|end|>", "{}"), ("", "")):
        response = FORMAT.response(header + space + end, TOOLS, prompt=CHAT.prompt)
        assert response == ChatResponse("", "", (ToolCall("weather", arguments),))


@pytest.mark.parametrize("name", ["weather.get", "wetter_für-morgen", "a" * 140, "3"])
@pytest.mark.parametrize("header", [header for header, part in HEADERS.items() if part == "call"])
def test_a_name_is_whole(header, name):
    named = header.replace("functions.weather", f"functions.{name}")

    response = FORMAT.response(named + "{}<|call|>", TOOLS, prompt=CHAT.prompt)

    assert response == ChatResponse("", "", (ToolCall(name, "{}"),))


@pytest.mark.parametrize("length", [60, 250, 300, 1000])
def test_thoughts_with_a_long_header_are_no_content(length):
    for more in (" " + "x" * length, " to=python <|constrain|>" + "x" * length):
        answer = f"<|channel|>analysis{more}<|message|>secret<|end|><|start|>assistant<|channel|>final<|message|>Well."
        response = FORMAT.response(answer, TOOLS, prompt=CHAT.prompt)
        assert response == ChatResponse("Well.", "secret")


@pytest.mark.parametrize("header", [header for header, part in HEADERS.items() if part == "call"])
def test_where_no_tools_are_offered_nothing_of_a_call_is_lost(header):
    response = FORMAT.response(_answer([(header, CALL.arguments)]), prompt=CHAT.prompt)

    assert response.tool_calls == ()
    assert response.content + response.reasoning == CALL.arguments


def _call(name, identity):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": "{}"}}


def _result(identity, text):
    return {"role": "tool", "tool_call_id": identity, "content": text}


@cache
def _no_description():
    return Tools.read([{"type": "function", "function": {"name": "f"}}])


def test_a_message_with_several_calls_becomes_one_for_each_with_its_result_behind_it():
    a, b = _call("f", "a"), _call("g", "b")
    both = {"role": "assistant", "content": "I look.", "reasoning": "It is far.", "tool_calls": [a, b]}
    end = {"role": "assistant", "content": "There.", "reasoning_content": "So."}

    messages, _ = FORMAT.told.chat([both, _result("b", "2"), _result("a", "1"), end], TOOLS)

    assert messages == [
        {"role": "assistant", "content": "", "reasoning_content": "It is far.\n\nI look.", "tool_calls": [a]},
        _result("a", "1"),
        {"role": "assistant", "content": "", "tool_calls": [b]},
        _result("b", "2"),
        end,
    ]


def test_content_in_parts_joins_the_thoughts_as_a_text_does():
    told = []
    for content in ("I look.\nThere.", [{"type": "text", "text": "I look."}, {"type": "text", "text": "There."}]):
        message = {"role": "assistant", "content": content, "reasoning": "It is far.", "tool_calls": [_call("f", "a")]}
        told.append(FORMAT.told.chat([message, _result("a", "1")], TOOLS)[0])

    assert told[0] == told[1]
    assert told[0][0]["reasoning_content"] == "It is far.\n\nI look.\nThere."


@pytest.mark.parametrize("identities", [(None, None), ("x", "y"), ("", "")], ids=str)
def test_results_that_name_no_call_are_those_of_the_calls_without_any_in_their_order(identities):
    calls = [_call(name, name) for name in "abc"]
    unknown = [_result(identity, text) for identity, text in zip(identities, "13", strict=True)]
    chat = [{"role": "assistant", "content": "", "tool_calls": calls}, unknown[0], _result("b", "2"), unknown[1]]

    told = FORMAT.told.chat([*chat, _result("z", "4")], TOOLS)[0]

    assert [
        (message["tool_calls"][0]["id"] if "tool_calls" in message else message["content"]) for message in told
    ] == [*("a", "1", "b", "2", "c", "3", "4")]


def test_a_call_with_one_text_before_it_stays_as_it_is():
    for text in ({"content": "I look."}, {"content": None, "reasoning_content": "It is far."}):
        chat = [{"role": "assistant", "tool_calls": [_call("f", "a")], **text}, _result("other", "1")]

        assert FORMAT.told.chat(chat, TOOLS)[0] == chat


def test_only_templates_of_single_calls_are_told_otherwise():
    both = {"role": "assistant", "content": "a", "reasoning": "b", "tool_calls": [_call("f", "a"), _call("g", "b")]}
    hermes = FAMILY_CHATS["Qwen and Hermes"].template + "{{ tool_calls }}"

    assert [family.name for family in FAMILIES if family.shows_single_calls] == ["gpt-oss"]
    assert type(FORMAT)(hermes).told.chat([both], _no_description()) == ([both], [*_no_description().given])


def test_a_function_without_a_description_gets_an_empty_one():
    _, tools = FORMAT.told.chat([{"role": "user", "content": "Hello"}], _no_description())

    assert tools == [{"type": "function", "function": {"name": "f", "description": ""}}]
