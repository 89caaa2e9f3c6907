"""Answers that have to be calls: what a model writes under the grammar is read as calls that their schemas allow."""

from __future__ import annotations

import json
import random
from functools import cache

import jsonschema
import numpy as np
import pytest
from byte_level import MERGES, VOCABULARY
from core.chat_responses.family_chats import FAMILY_CHATS, ROME
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipezoo_core.chat_responses import ChatFormat, ToolCall, Tools
from pipezoo_core.errors import InvalidGrammarError, InvalidRequestError
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.structured_output import GrammarCompiler
from pipezoo_core.tokenizer.special_tokens import special_texts

_PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["city"],
    "additionalProperties": False,
}
_SCHEMA = json.dumps(_PARAMETERS)
_NO_TOOLS = Tools.read(None)
_FORCED = [name for name, chat in FAMILY_CHATS.items() if chat.format.family.form is not None]


def _tools(choice, *, strict=False, several=True):
    functions = [
        {"name": name, "parameters": _PARAMETERS, **({"strict": True} if strict else {})}
        for name in ("weather", "time_in")
    ]
    return Tools.read(
        [{"type": "function", "function": function} for function in functions], choice, may_call_several=several
    )


def _named(name):
    return {"type": "function", "function": {"name": name}}


class _Model:
    """A family's tokenizer over bytes, and a model that writes anything that a grammar allows."""

    def __init__(self, name: str, begun: str = "") -> None:
        chat = FAMILY_CHATS[name]
        tokenizer = Tokenizer(models.BPE(dict(VOCABULARY), [tuple(merge.split()) for merge in MERGES]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([*chat.special, "<eos>"])
        if name != "SmolLM2":  # which has no tokens for its marks
            tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<think>", "</think>"])
        self.delegate = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat.template)
        self.format = ChatFormat.of(self.delegate, special_texts(self.delegate))
        self.prompt = chat.prompt + begun
        self.is_thinking = chat.format.parser(prompt=self.prompt).open_field == "reasoning_content"
        self._end = self.delegate.convert_tokens_to_ids("<eos>")

    def matcher(self, tools: Tools, schema: str | None = None):
        grammar = self.format.grammar(tools, prompt=self.prompt, content_schema=schema)
        matcher = GrammarCompiler(self.delegate, end_token_ids=[self._end]).matcher(SamplingParams(grammar=grammar))
        assert matcher is not None
        return matcher

    def accepts(self, tools: Tools, text: str, schema: str | None = None) -> bool:
        matcher = self.matcher(tools, schema)
        tokens = self.delegate.encode(text, add_special_tokens=False)
        for number, token in enumerate(tokens):
            allowed = self._allowed(matcher)
            if not allowed[token]:
                return False
            matcher.consume(token)
            if matcher.is_complete:
                return number == len(tokens) - 1
        return bool(self._allowed(matcher)[self._end])

    def answer(self, tools: Tools, seed: int) -> str:
        matcher, draw = self.matcher(tools), random.Random(seed)
        thought = "so</think>" if self.is_thinking else ""  # one of its own would be long
        tokens = self.delegate.encode(thought, add_special_tokens=False)
        for token in tokens:
            matcher.consume(token)
        while len(tokens) < 600:
            allowed = self._allowed(matcher)
            if matcher.is_complete:
                break
            token = draw.choice(np.flatnonzero(allowed).tolist())
            if token == self._end or (allowed[self._end] and draw.random() < 0.5):
                break
            tokens.append(token)
            matcher.consume(token)
            if matcher.is_complete:
                break
        assert matcher.error is None
        return self.delegate.decode(tokens, skip_special_tokens=not self.format.needs_special_tokens)

    def _allowed(self, matcher):
        bits = np.frombuffer(matcher.ll_matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: matcher.num_tokens].astype(bool)
        matcher.settle(allowed, stop_token_ids=[self._end], may_end=True)
        return allowed


_model = cache(_Model)


@pytest.mark.slow
@pytest.mark.parametrize("name", _FORCED)
def test_a_familys_own_writing_is_allowed_and_no_other(name):
    model = _model(name)
    form = model.format.family.form
    thought = "so</think>" if model.is_thinking else ""
    other = ToolCall("time_in", ROME.arguments)

    assert model.accepts(_tools("required"), thought + form.written([ROME]))
    assert model.accepts(_tools("required"), thought + form.written([ROME, other])) == (form.between is not None)
    assert not model.accepts(_tools("required", several=False), thought + form.written([ROME, ROME]))
    assert not model.accepts(_tools(_named("time_in")), thought + form.written([ROME]))
    assert not model.accepts(_tools("required"), thought + form.written([ToolCall("weather", '{"town": "Rome"}')]))
    assert not model.accepts(_tools("required"), f"{thought}Well. {form.written([ROME])}")


@pytest.mark.slow
@pytest.mark.parametrize("name", _FORCED)
def test_whatever_is_written_is_read_as_calls(name):
    model = _model(name)
    tools = _tools(_named("time_in"), several=False)

    for seed in range(3):
        answer = model.answer(tools, seed)
        response = model.format.response(answer, tools, prompt=model.prompt)

        assert response.content.strip() == "", answer
        assert [call.name for call in response.tool_calls] == ["time_in"]
        jsonschema.validate(json.loads(response.tool_calls[0].arguments), _PARAMETERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen and Hermes", "Mistral, by name", "Llama 3", "SmolLM2"])
def test_a_strict_function_leaves_text_free_and_binds_calls(name):
    model = _model(name)
    form, tools = model.format.family.form, _tools("auto", strict=True)

    assert model.accepts(tools, "Well, a < b.")
    assert model.accepts(tools, form.written([ROME]))
    assert not model.accepts(tools, form.written([ToolCall("weather", '{"town": "Rome"}')]))
    assert model.format.grammar(_tools("auto")) is None
    assert model.format.grammar(_tools("none", strict=True)) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("Llama 3", '{"name":"weather", "parameters": {"town": 1}}'),
        ("Llama 3", ' {\n"name" : "weather", "parameters": {"town": 1}}'),
        ("Llama 3", '{"type": "function", "name": "weather", "parameters": {"town": 1}}'),
        ("SmolLM2", '<tool_call> [{"name": "weather", "arguments": {"town": 1}}]</tool_call>'),
        ("SmolLM2", 'Well. <tool_call>\n[{"name":"weather", "arguments": {"town": 1}}]</tool_call>'),
        ("Qwen and Hermes", 'Well.<tool_call>{"name":"weather", "arguments": {"town": 1}}</tool_call>'),
    ],
)
def test_no_way_to_write_a_call_that_is_read_goes_around_a_strict_function(name, call):
    model, tools = _model(name), _tools("auto", strict=True)

    assert [found.name for found in model.format.response(call, tools, prompt=model.prompt).tool_calls] == ["weather"]
    assert not model.accepts(tools, call)
    assert model.accepts(tools, 'Well, {"a": 1}.')


def test_thoughts_come_before_calls():
    model = _model("Qwen and Hermes")
    written = model.format.family.form.written([ROME])

    assert model.accepts(_tools("required"), f"<think>so < it</think>{written}")
    assert model.accepts(_tools("required"), f"<think>so</think>\n\n{written}")
    assert not model.accepts(_tools("required"), f"<think>so{written}")


def test_a_prompt_that_has_closed_its_thoughts_is_followed_by_calls_at_once():
    model = _model("Qwen and Hermes", "<think>\n\n</think>\n\n")

    assert model.accepts(_tools("required"), model.format.family.form.written([ROME]))


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("DeepSeek R1", "so</think>\n\n"),
        ("any other", "so</think>"),
        ("gpt-oss", "<|channel|>final<|message|>"),
    ],
)
def test_a_schema_without_tools_is_followed_where_the_answer_begins(name, before):
    model = _model(name)
    answer = before + ROME.arguments

    assert model.accepts(_NO_TOOLS, answer, _SCHEMA)
    assert not model.accepts(_NO_TOOLS, ROME.arguments, _SCHEMA)
    assert not model.accepts(_NO_TOOLS, before + '{"town": 1}', _SCHEMA)
    assert model.format.response(answer, prompt=model.prompt).content == ROME.arguments


def test_a_schema_is_all_of_a_grammar_where_the_prompt_leads_to_content():
    assert _model("Qwen and Hermes").format.grammar(_NO_TOOLS, prompt="", content_schema=_SCHEMA) is None


def test_a_schema_is_refused_where_what_comes_before_an_answer_is_unknown():
    own = {"start_anchor": "A:", "fields": {"content": {"open": "(", "close": ")"}}}

    with pytest.raises(InvalidRequestError, match="cannot follow a schema"):
        ChatFormat("", response_template=own).grammar(_NO_TOOLS, prompt="A:", content_schema=_SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize("schema", [None, _SCHEMA])
def test_content_beside_calls_begins_as_the_model_begins_it(schema):
    model = _model("gpt-oss")
    tools, text = _tools("auto", strict=True), "Well." if schema is None else ROME.arguments

    assert model.accepts(tools, f"<|channel|>final<|message|>{text}", schema)
    assert model.accepts(tools, model.format.family.form.written([ROME]), schema)
    assert not model.accepts(tools, text, schema)
    assert model.format.response(f"<|channel|>final<|message|>{text}", tools, prompt=model.prompt).content == text


@pytest.mark.parametrize("place", ["a function", "the content", "content without calls"])
def test_numbers_of_keys_that_a_grammar_cannot_hold_are_refused(place):
    many = {"type": "object", "minProperties": 3}
    tool = {"name": "f", "parameters": many if place == "a function" else {"type": "object"}, "strict": True}
    tools = Tools.read([{"type": "function", "function": tool}] if place != "content without calls" else None)
    schema = None if place == "a function" else json.dumps(many)

    with pytest.raises(InvalidGrammarError, match="minProperties 3"):
        _model("DeepSeek R1").matcher(tools, schema)


def test_special_tokens_outside_of_the_vocabulary_keep_their_ids():
    model = _model("Qwen and Hermes")

    matcher = GrammarCompiler(model.delegate, end_token_ids=[]).matcher(
        SamplingParams(grammar='start: <tool_call> "a" <think>')
    )

    for text in ("<tool_call>", "a", "<think>"):
        matcher.consume(model.delegate.convert_tokens_to_ids(text))
    assert (matcher.error, matcher.is_complete) == (None, True)


def test_calls_that_are_no_json_cannot_be_forced():
    with pytest.raises(InvalidRequestError, match="Qwen3-Coder models cannot be forced"):
        FAMILY_CHATS["Qwen3-Coder"].format.grammar(_tools("required"))
