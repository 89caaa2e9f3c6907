"""Answers to their parts: against transformers' own parser, and in pieces against the whole."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from core.chat_responses.family_chats import FAMILY_CHATS, ODD, ROME, TOOLS, FamilyChat
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_parsing import parse_response

from pipezoo_core.chat_responses import ChatFormat, ChatResponse, ResponseTemplate, ToolCall, Tools
from pipezoo_core.chat_responses.families import FAMILIES
from pipezoo_core.errors import UnsupportedTokenizerError

_ODD_TEXTS = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "<|tool_call|>",
            "<|/tool_call|>",
            '{"name": "f", "arguments": ',
            '{"a": 1}',
            "}",
            "]",
            "[",
            '"',
            "\\",
            "\n",
            " ",
            "x",
            "1",
            ", ",
            "f",
            "<",
            "<|",
            "<|channel|>",
            "analysis",
            "<|message|>",
            "<|end|>",
            "final",
            "commentary to=functions.f",
            "null",
            "\\u00e9",
            "<｜tool▁call▁begin｜>",
            "function<｜tool▁sep｜>",
            "```json\n",
            "<｜tool▁call▁end｜>",
            "<|start|>",
            "{{",
            '"name"',
        ]
    ),
    max_size=24,
).map("".join)


def _in_pieces(chat: FamilyChat, text: str, cuts: list[int], tools: Tools = TOOLS) -> ChatResponse:
    parser = chat.format.parser(tools, prompt=chat.prompt)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    deltas = [parser.feed(text[start:end]) for start, end in pairwise(places)]
    deltas.append(parser.finish())
    names = [piece.name for delta in deltas for piece in delta.tool_calls if piece.name is not None]
    indices = [piece.index for delta in deltas for piece in delta.tool_calls]
    assert indices == sorted(indices)
    assert len(names) == len(set(indices))  # the name once per call
    return ChatResponse.joined(deltas)


def test_every_family_has_its_chat():
    assert {family.name for family in FAMILIES} == set(FAMILY_CHATS)
    assert all(chat.format.family.name == name for name, chat in FAMILY_CHATS.items())


@pytest.mark.parametrize("name", FAMILY_CHATS)
def test_an_answer_has_its_parts(name):
    chat = FAMILY_CHATS[name]

    assert chat.format.response(chat.answer, TOOLS, prompt=chat.prompt) == chat.response


@pytest.mark.parametrize("name", FAMILY_CHATS)
def test_where_there_may_be_but_one_call_the_first_is_given_out(name):
    chat = FAMILY_CHATS[name]
    one = replace(TOOLS, may_call_several=False)

    whole = chat.format.response(chat.answer, one, prompt=chat.prompt)

    assert whole == replace(chat.response, tool_calls=chat.response.tool_calls[:1])
    assert _in_pieces(chat, chat.answer, [*range(len(chat.answer))], one) == whole


@pytest.mark.parametrize("name", FAMILY_CHATS)
def test_transformers_reads_the_same(name):
    chat = FAMILY_CHATS[name]
    answer = chat.answer.replace("</tool_call> \\", "\\")  # a mark in a string, at which transformers' parser stops
    template = dict(chat.format.family.response)

    theirs = parse_response(answer, template, prefix=chat.prompt, tools=list(TOOLS.given))
    ours = chat.format.response(answer, TOOLS, prompt=chat.prompt)

    assert ours.content == theirs.get("content", "")
    assert ours.reasoning == theirs.get("reasoning_content", "")
    calls = theirs["tool_calls"][0] if isinstance(theirs["tool_calls"][0], list) else theirs["tool_calls"]
    assert [{"name": call.name, "arguments": json.loads(call.arguments)} for call in ours.tool_calls] == [
        {"name": call["function"]["name"], "arguments": call["function"].get("arguments")} for call in calls
    ]


@pytest.mark.parametrize("name", FAMILY_CHATS)
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=30))
def test_pieces_of_an_answer_are_the_whole(name, cuts):
    chat = FAMILY_CHATS[name]

    assert _in_pieces(chat, chat.answer, cuts) == chat.response


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FAMILY_CHATS)), _ODD_TEXTS, st.integers(0, 40))
def test_pieces_of_any_text_are_the_whole(name, text, end):
    chat = FAMILY_CHATS[name]
    text = chat.answer[: end * len(chat.answer) // 40] + text

    whole = _in_pieces(chat, text, [])

    assert _in_pieces(chat, text, list(range(len(text)))) == whole
    assert _in_pieces(chat, text, list(range(0, len(text), 3))) == whole


def test_characters_come_out_as_they_are_written():
    chat = FAMILY_CHATS["Qwen and Hermes"]
    parser = chat.format.parser(TOOLS)
    text = f'<tool_call>{{"name": "weather", "arguments": {ROME.arguments}}}</tool_call>'

    deltas = [parser.feed(character) for character in text]

    pieces = [piece for delta in deltas for piece in delta.tool_calls]
    assert (pieces[0].name, pieces[0].arguments) == ("weather", "{")
    assert len(pieces) == len(ROME.arguments)


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        ('<tool_call>{"name": "f"}</tool_call>', [("f", "{}")], ""),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [("f", '{"a": 1}')], ""),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [("f", '{"a": 1}')], ""),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")], ""),
        ('<tool_call>{"name": "f", "arguments": {"a": 1', [("f", '{"a": 1')], ""),  # cut short
        ('<tool_call>{"name": "f", "arguments": {"a": nan}}</tool_call>', [("f", '{"a": nan}}')], ""),
        (
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            [],
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        ),
        ("<tool_call>f(1)</tool_call> then", [], "<tool_call>f(1)</tool_call> then"),
        ("<tool_call>", [], "<tool_call>"),
        ("a < b and b <tool", [], "a < b and b <tool"),
        ('a\n<tool_call>{"name": "f"}</tool_call>\nb', [("f", "{}")], "a\nb"),
    ],
)
def test_what_is_no_call_is_content_and_nothing_is_lost(text, calls, content):
    response = FAMILY_CHATS["Qwen and Hermes"].format.response(text, TOOLS)

    assert response == ChatResponse(content, "", tuple(ToolCall(*call) for call in calls))


def _coder(city):
    return f"<tool_call>\n<function=f>\n<parameter=city>\n{city}\n</parameter>\n</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (_coder('{"a": "\\ud800"}'), {"city": {"a": "\ud800"}}),
        (_coder('{"a": "\\u00e9"}'), {"city": {"a": "é"}}),
    ],
)
def test_half_a_pair_in_an_argument_stays_as_the_model_escaped_it(text, arguments):
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"city": {"type": "object"}}}}
    tools = Tools.read([{"type": "function", "function": tool}])

    (call,) = FAMILY_CHATS["Qwen3-Coder"].format.response(text, tools).tool_calls

    assert json.loads(call.arguments.encode()) == arguments


def test_half_a_pair_in_functiongemmas_argument_stays_as_it_is_escaped():
    text = '<start_function_call>call:weather{city:"\\ud800"}<end_function_call>'

    (call,) = FAMILY_CHATS["FunctionGemma"].format.response(text, TOOLS).tool_calls

    assert json.loads(call.arguments.encode()) == {"city": "\ud800"}


@pytest.mark.parametrize("name", ["5", "null", '["f"]', '"\\ud800"'])
def test_a_name_that_is_no_text_is_no_call(name):
    own = {
        "start_anchor": "A:",
        "fields": {
            "tool_calls": {
                "open": "!",
                "close": "!",
                "content": "json",
                "content_args": {"unquoted_keys": True},
                "transform": {"type": "function", "function": {"name": "{content.name}", "arguments": {}}},
            },
            "content": {},
        },
    }
    text = f'!{{"name": {name}}}!'

    assert ChatFormat("", response_template=own).response(text, TOOLS) == ChatResponse(text)


def test_without_tools_a_call_is_content():
    chat = FAMILY_CHATS["SmolLM2"]
    off = Tools.read(TOOLS.given, "none")

    assert chat.format.response(chat.answer).content == chat.answer
    assert chat.format.response(chat.answer, off).content == chat.answer


@pytest.mark.parametrize(
    ("begun", "field"),
    [
        ("", "content"),
        ("<think>", "reasoning_content"),
        ("<think>\n", "reasoning_content"),
        ("<think>\n\n</think>", "content"),
        ("<think>\n\n</think>\n\n", "content"),
        ("Well.\n", "content"),
    ],
)
def test_a_prompt_says_which_field_an_answer_begins_in(begun, field):
    chat = FAMILY_CHATS["Qwen and Hermes"]

    assert chat.format.parser(TOOLS, prompt=chat.prompt + begun).open_field == field


@pytest.mark.parametrize(
    ("begun", "answer", "response"),
    [
        ("Hello\n", "World", ChatResponse("World")),
        ("Hello <", "World", ChatResponse("World")),
        ("Hello <thi", "nk>so</think>World", ChatResponse("World", "so")),
        ('<tool_call>{"name": "time_in", "arguments": {}}</tool_call>', " Well.", ChatResponse(" Well.")),
        ('<tool_call>{"name": "time_in", "arguments": {', "}}", ChatResponse("}}")),
        (
            '<tool_call>{"name": "time_in", "arguments": {}}</tool_call>',
            f'<tool_call>{{"name": "weather", "arguments": {ROME.arguments}}}</tool_call>',
            ChatResponse("", "", (ROME,)),
        ),
    ],
)
def test_an_answer_is_what_comes_behind_its_prompt(begun, answer, response):
    chat = FAMILY_CHATS["Qwen and Hermes"]
    prompt = chat.prompt + begun

    assert chat.format.response(answer, TOOLS, prompt=prompt) == response
    parser = chat.format.parser(TOOLS, prompt=prompt)
    assert ChatResponse.joined([*map(parser.feed, answer), parser.finish()]) == response


def test_plain_content_is_left_as_it_is():
    text = "  two\n\n spaces  \n"

    assert all(chat.format.response(text).content == text for name, chat in FAMILY_CHATS.items() if name != "gpt-oss")


def test_special_tokens_that_mark_nothing_are_dropped():
    chat = replace(FAMILY_CHATS["Mistral, by name"], special=("[TOOL_CALLS]", "[ARGS]", "<pad>", "[IMG]"))

    response = chat.format.response(f"a[IMG]b<pad>[TOOL_CALLS]time_in[ARGS]{ODD.arguments}", TOOLS)

    assert chat.format.needs_special_tokens
    assert response == ChatResponse("ab", "", (ODD,))
    assert not FAMILY_CHATS["Qwen and Hermes"].format.needs_special_tokens


def test_a_checkpoints_own_template_wins():
    own = {
        "start_anchor": "A:",
        "defaults": {"role": "assistant", "content": ""},
        "fields": {
            "thinking": {"open": "(", "close": ")"},
            "tool_calls": {
                "open_pattern": r"!(?P<name>\w+) ",
                "close": "!",
                "content": "kv-lines",
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {},
        },
    }
    chat_format = ChatFormat("<tool_call>", response_template=own)

    response = chat_format.response("so)\n Well. !weather city: Rome\ndays: 3! ", TOOLS, prompt="A: (")

    assert response == ChatResponse("Well.", "so", (ROME,))


@pytest.mark.parametrize(
    "spec",
    [
        {"start_anchor": "A", "fields": {}},
        {"fields": {"content": {}}},
        {"version": 2, "start_anchor": "A", "fields": {"content": {}}},
        {"start_anchor": "A", "fields": {"content": {"unknown": 1}}},
        {"start_anchor": "A", "fields": {"content": {"content": "yaml"}}},
        {"start_anchor": "A", "fields": {"content": {"close_pattern": "("}}},
        {"start_anchor": "A", "fields": {"content": {"open": ""}}},
        {"start_anchor": "A", "fields": {"content": {}, "thinking": {}}},
        {"start_anchor": "A", "fields": {"tool_calls": {"open": "x", "content": "json"}}},
        {"start_anchor": "A", "fields": {"content": {}}, "defaults": []},
        {"start_anchor": "A", "fields": {"content": {}}, "defaults": {"content": "Well."}},
        [],
    ],
)
def test_a_template_that_is_not_sound_is_refused(spec):
    with pytest.raises(UnsupportedTokenizerError, match="response_template"):
        ResponseTemplate.from_dict(spec)


def test_an_expression_without_an_end_is_stopped():
    own = {"start_anchor": "A", "fields": {"content": {"close_pattern": r"(x|xx)+[yz]"}}}
    parser = ChatFormat("", response_template=own).parser()

    with pytest.raises(UnsupportedTokenizerError, match="too long"):
        parser.whole("x" * 60)


@pytest.mark.parametrize("name", ["DeepSeek R1", "DeepSeek V3.1", "Mistral, by name", "gpt-oss"])
def test_a_call_that_is_cut_behind_its_name_has_no_arguments_and_no_marks_in_the_content(name):
    chat = FAMILY_CHATS[name]
    first = chat.response.tool_calls[0]
    cut = chat.answer[: chat.answer.index(first.arguments)]

    response = chat.format.response(cut, TOOLS, prompt=chat.prompt)

    assert response.tool_calls == (ToolCall(first.name, ""),)
    assert chat.response.content.startswith(response.content)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("Qwen and Hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}}</tool_call>'),
        ("Mistral, as a list", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": }] tail'),
        ("Mistral, as a list", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]]'),
    ],
)
def test_remains_of_a_calls_json_are_no_content(name, answer):
    chat = FAMILY_CHATS[name]
    assert chat.format.response(answer, TOOLS, prompt=chat.prompt) == ChatResponse("", "", (ToolCall("f", '{"a": 1}'),))
