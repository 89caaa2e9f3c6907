"""Tools, calls and results to the messages of a chat template, in conversations of two turns."""

from __future__ import annotations

import json

import pytest
from byte_level import MERGES, VOCABULARY
from core.chat_responses.family_chats import FAMILY_CHATS, ROME, TOOLS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipezoo_core.chat_responses import ChatFormat, Tools, new_call_id
from pipezoo_core.errors import InvalidRequestError
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.tokenizer import TextTokenizer

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEMPLATES = {
    "Qwen and Hermes": "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}{{ t | tojson }}"
    "{% endfor %}</tools>"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role if m.role != 'tool' else 'user' }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    "Mistral, as a list": "{{ bos_token }}[AVAILABLE_TOOLS]{{ tools | tojson }}"
    "[/AVAILABLE_TOOLS]{% for m in messages %}"
    "{% if m.tool_calls %}[TOOL_CALLS] {% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('ids have nine letters') }}{% endif %}{{ c.function | tojson }}{% endfor %}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.tool_call_id }}{{ m.content }}[/TOOL_RESULTS]"
    "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}",
    "Llama 3": "{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}"
    "<|end_header_id|>\n\n"
    "{% if loop.first and tools %}{{ tools | tojson }}{% endif %}{% if m.tool_calls %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n",
    "SmolLM2": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are SmolLM<|im_end|>\n{% endif %}"
    + _CHATML,
    "Phi-4-mini": "{% for m in messages %}{% if m['role'] == 'system' and m['tools'] %}<|system|>"
    "{{ m['content'] }}<|tool|>"
    "{{ m['tools'] }}<|/tool|><|end|>{% else %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}<|assistant|>",
    "any other": "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}"
    "{% elif m['role'] not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}",
}
_ID = new_call_id()
_CONVERSATION = [
    {"role": "user", "content": "Is it warm in Rome?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": _ID, "type": "function", "function": {"name": "weather", "arguments": ROME.arguments}},
        ],
    },
    {"role": "tool", "tool_call_id": _ID, "content": '{"degrees": 31}'},
]


def _tokenizer(template: str) -> TextTokenizer:
    tokenizer = Tokenizer(models.BPE(dict(VOCABULARY), [tuple(merge.split()) for merge in MERGES]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    delegate = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, bos_token="<s>")
    return TextTokenizer(delegate, max_length=4096, sampling_params=SamplingParams(), eos_token_ids=[])


@pytest.mark.parametrize("name", _TEMPLATES)
def test_a_conversation_of_two_turns_has_the_tools_the_call_and_the_result(name):
    tokenizer = _tokenizer(_TEMPLATES[name])
    chat_format = ChatFormat.of(tokenizer.delegate, tokenizer.special_texts)
    assert chat_format.family.name == name

    messages, tools = chat_format.told.chat(_CONVERSATION, TOOLS)
    prompt = tokenizer.apply_chat_template(messages, tools=tools)

    places = [prompt.index(part) for part in ("Says it.", "Is it warm", '"city": "Rome"', '"degrees": 31')]
    assert places == sorted(places) or name == "any other"  # there the user's message has the tools
    as_written = prompt.rindex('"name": "weather"', 0, prompt.index("degrees"))
    assert as_written > prompt.index("Says it.")


@pytest.mark.parametrize("name", ["Qwen and Hermes", "Mistral, as a list", "Llama 3"])
def test_a_template_that_knows_tools_gets_them_as_of_transformers(name):
    tokenizer = _tokenizer(_TEMPLATES[name])
    chat_format = ChatFormat.of(tokenizer.delegate, tokenizer.special_texts)
    plain = [dict(message, content=message["content"] or "") for message in _CONVERSATION]
    call = dict(plain[1]["tool_calls"][0], function={"name": "weather", "arguments": json.loads(ROME.arguments)})
    plain[1] = dict(plain[1], tool_calls=[call])

    messages, tools = chat_format.told.chat(_CONVERSATION, TOOLS)

    assert (messages, tools) == (_CONVERSATION, list(TOOLS.given))
    assert tokenizer.apply_chat_template(messages, tools=tools) == tokenizer.delegate.apply_chat_template(
        plain, tools=list(TOOLS.given), tokenize=False, add_generation_prompt=True
    )


def test_a_call_that_is_written_is_read_again():
    for name, chat in FAMILY_CHATS.items():
        if chat.format.family.form is not None and name != "gpt-oss":
            written = chat.format.family.form.written([ROME])
            assert chat.format.response(written, TOOLS).tool_calls == (ROME,), name


def test_tools_that_may_not_be_called_are_not_told():
    for template in _TEMPLATES.values():
        chat_format = ChatFormat(template)
        messages = [{"role": "user", "content": "Hello"}]

        assert chat_format.told.chat(messages, Tools.read(TOOLS.given, "none")) == (messages, None)


def test_instructions_stand_behind_the_systems_own_text():
    chat_format = ChatFormat(_TEMPLATES["SmolLM2"])
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}]

    messages, tools = chat_format.told.chat([{"role": "system", "content": parts}], TOOLS)

    assert tools is None
    assert messages[0]["content"].startswith("Be\nkind.\n\nYou can call functions")
    assert '<tool_call>[{"name": "weather", "arguments": {"argument": "value"}}]</tool_call>' in messages[0]["content"]


def _function(**spec):
    return {"type": "function", "function": {"name": "f", **spec}}


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([_function(name=f"f{i}") for i in range(129)], None, "too many tools"),
        ([_function(description="x" * 70_000)], None, "too large"),
        ([_function(), _function()], None, "same name"),
        ([_function(name="a b")], None, "name of tool 1"),
        ([_function(name="auto")], None, "name of tool 1"),
        ([_function(name="x" * 65)], None, "name of tool 1"),
        ([_function(parameters=[])], None, "not sound"),
        ([_function(code="x")], None, "unknown entry"),
        ([{"type": "retrieval"}], None, "not sound"),
        (["f"], None, "not sound"),
        ([_function()], "sometimes", "tool_choice is not valid"),
        ([_function()], {"type": "function", "function": {"name": "g"}}, "tool_choice is not valid"),
        ([], "required", "no tools"),
    ],
)
def test_tools_have_bounds(tools, choice, message):
    with pytest.raises(InvalidRequestError, match=message):
        Tools.read(tools, choice)


def test_tools_are_refused_where_neither_template_nor_form_can_tell_of_them():
    told = ChatFormat("{{ messages }}<tool_call><function=f><parameter=a>").told
    messages = [{"role": "user", "content": "hi"}]

    with pytest.raises(InvalidRequestError, match=r"cannot be told of tools.*Qwen3-Coder"):
        told.chat(messages, TOOLS)
    assert told.chat(messages, Tools.read(TOOLS.given, "none")) == (messages, None)


def test_a_message_whose_calls_are_not_sound_is_refused():
    for calls in ["f", [1], [{"function": {"name": 1}}]]:
        with pytest.raises(InvalidRequestError, match="not sound"):
            ChatFormat(_TEMPLATES["SmolLM2"]).told.chat([{"role": "assistant", "tool_calls": calls}], TOOLS)
