"""Chats in the harmony format, whose template does what OpenAI's does, against transformers."""

import datetime
import json

import pytest
from gguf_files import BYTES
from gpt_oss.tiny_gpt_oss import make
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipezoo import registry
from pipezoo_core.chat_responses import ChatFormat, ChatResponse, Tools
from pipezoo_core.request import TextGenerationRequest

SPECIAL = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|endoftext|>"]
SPECIAL += ["<|constrain|>"]
# Macros, a namespace, `raise_exception`, `strftime_now`, thinking in a channel of its own, tools as types.
TEMPLATE = """\
{%- macro kind(schema) -%}
{%- if schema.type == 'array' -%}{{ kind(schema['items']) }}[]
{%- elif schema.enum -%}{{ '"' + schema.enum|join('" | "') + '"' }}
{%- else -%}{{ schema.type }}{%- endif -%}
{%- endmacro -%}
{%- macro declare(tools) -%}
{{- "namespace functions {\\n" }}
{%- for tool in tools %}{{- "// " + tool.function.description + "\\ntype " + tool.function.name + " = (_: {\\n" }}
{%- for name, schema in tool.function.parameters.properties.items() %}
{{- name }}
{%- if name not in (tool.function.parameters.required or []) %}{{- "?" }}{%- endif %}{{- ": " + kind(schema) }}
{%- if schema.default is defined %}{{- ", // default: " + schema.default|tojson }}{%- endif %}{{- "\\n" }}
{%- endfor %}{{- "}) => any;\\n" }}{%- endfor %}{{- "}" }}
{%- endmacro -%}
{%- if model_identity is not defined %}{%- set model_identity = "You are a model." %}{%- endif %}
{{- "<|start|>system<|message|>" + model_identity + "\\nCurrent date: " + strftime_now("%Y-%m-%d") }}
{{- "\\nReasoning: " + (reasoning_effort or "medium") + "<|end|>" }}
{%- if messages[0].role in ("system", "developer") %}
{%- set instructions, rest = messages[0].content, messages[1:] %}
{%- else %}{%- set instructions, rest = "", messages %}{%- endif %}
{%- if instructions or tools %}{{- "<|start|>developer<|message|>" + instructions }}
{%- if tools %}{{- "# Tools\\n" + declare(tools) }}{%- endif %}{{- "<|end|>" }}{%- endif %}
{%- set last = namespace(call=none) %}
{%- for message in rest %}
{%- if message.role == "assistant" %}
{%- if "<|channel|>" in (message.content or "") %}{{- raise_exception("a channel in the content") }}{%- endif %}
{%- if message.tool_calls %}{%- set last.call = message.tool_calls[0].function.name %}
{%- if message.content and message.thinking %}{{- raise_exception("two texts before a call") }}{%- endif %}
{%- set answered = namespace(found=false) %}
{%- for later in rest[loop.index:] %}
{%- if later.role == "assistant" and not later.tool_calls %}{%- set answered.found = true %}{%- endif %}{%- endfor %}
{%- set thought = message.content or message.thinking %}
{%- if thought and not answered.found %}
{{- "<|start|>assistant<|channel|>analysis<|message|>" + thought + "<|end|>" }}{%- endif %}
{{- "<|start|>assistant to=functions." + last.call + "<|channel|>commentary json<|message|>" }}
{{- message.tool_calls[0].function.arguments|tojson }}{{- "<|call|>" }}
{%- elif loop.last and not add_generation_prompt %}
{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
{%- else %}{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}{%- endif %}
{%- elif message.role == "tool" %}
{%- if last.call is none %}{{- raise_exception("an answer of a tool without a call") }}{%- endif %}
{{- "<|start|>functions." + last.call + " to=assistant<|channel|>commentary<|message|>" }}
{{- message.content|tojson + "<|end|>" }}
{%- else %}{{- "<|start|>user<|message|>" + message.content + "<|end|>" }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start|>assistant" }}{%- endif %}"""
PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "array", "items": {"type": "number"}},
    "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
}
FUNCTION = {"name": "weather", "description": "Says how it is.", "parameters": {"type": "object", "required": ["city"]}}
FUNCTION["parameters"]["properties"] = PROPERTIES
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2]}}}
CHAT = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "blue"}'},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "Sure?"},
]


def make_tokenizer():
    plain = Tokenizer(models.BPE({token: i for i, token in enumerate(BYTES)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|return|>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("gpt_oss"), make_tokenizer()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|return|>", "<|call|>", "<|endoftext|>")]
    reference = make(vocab_size=len(tokenizer))
    reference.generation_config.eos_token_id = ends
    reference.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with registry.load(folder, dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        yield llm


@pytest.mark.parametrize("messages", [CHAT[:2], CHAT[1:2], CHAT[:4], CHAT], ids=["first", "plain", "tool", "later"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no_tools", "tools"])
@pytest.mark.parametrize("variables", [{}, {"reasoning_effort": "high", "model_identity": "You are it."}], ids=str)
def test_chats_render_as_transformers_renders_them(llm, messages, tools, variables):
    expected = make_tokenizer().apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True, **variables
    )
    assert llm.tokenizer.apply_chat_template(messages, tools=tools, chat_template_kwargs=variables) == expected
    assert ("number[]" in expected) == (tools is not None)
    assert str(datetime.date.today().year) in expected
    assert ("Reasoning: high" in expected) == bool(variables)


def test_an_answer_ends_where_a_tool_is_called_too(llm):
    tokenizer = make_tokenizer()
    assert llm.tokenizer.eos_token_ids >= {
        tokenizer.convert_tokens_to_ids(token) for token in ("<|return|>", "<|call|>")
    }


@pytest.fixture(scope="module")
def chat_format(llm):
    return ChatFormat.of(llm.tokenizer.delegate, llm.tokenizer.special_texts)


@pytest.mark.parametrize("has_a_later_answer", [False, True])
def test_what_the_server_answers_can_be_sent_back(llm, chat_format, has_a_later_answer):
    answer = (
        "<|channel|>analysis<|message|>It is far.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}'
    )
    tools = Tools.read(TOOLS)
    said = chat_format.response(answer, tools, prompt="<|start|>assistant")
    (call,) = said.tool_calls
    function = {"name": call.name, "arguments": call.arguments}
    message = {"role": "assistant", "content": said.content, "reasoning_content": said.reasoning}
    message["tool_calls"] = [{"id": "a", "type": "function", "function": function}]
    chat = [*CHAT[:2], message, {"role": "tool", "tool_call_id": "a", "content": "31 degrees"}]

    messages, told = chat_format.told.chat([*chat, *CHAT[4:]] if has_a_later_answer else chat, tools)
    prompt = llm.tokenizer.apply_chat_template(messages, tools=told)

    assert (
        '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
        '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"31 degrees"<|end|><|start|>assistant'
    ) in prompt
    thought = "<|start|>assistant<|channel|>analysis<|message|>It is far.\n\nI look.<|end|>"
    assert (thought in prompt) == (not has_a_later_answer)


@pytest.mark.parametrize("channel", ["analysis", "commentary"])
@pytest.mark.parametrize("seed", range(2))
def test_a_forced_call_comes_with_thoughts_or_without(llm, chat_format, channel, seed):
    unit = {"type": "object", "properties": {"unit": PROPERTIES["unit"]}, "required": ["unit"]}
    unit["additionalProperties"] = False
    tools = Tools.read([{"type": "function", "function": {"name": "weather", "parameters": unit}}], "required")
    request = TextGenerationRequest(messages=CHAT[1:2])  # without the tools, because the context is short
    prompt = llm.tokenizer.apply_chat_template(CHAT[1:2])
    first_letter, end = llm.tokenizer.delegate.convert_tokens_to_ids([channel[0], "<|end|>"])

    pieces = [
        *llm.stream(
            request,
            grammar=chat_format.grammar(tools, prompt=prompt),
            skip_special_tokens=not chat_format.needs_special_tokens,
            logit_bias={first_letter: 20.0, end: 40.0},
            temperature=1.0,
            seed=seed,
        )
    ]

    parser = chat_format.parser(tools, prompt=prompt)
    response = ChatResponse.joined([*map(parser.feed, pieces), parser.finish()])
    assert response == chat_format.response("".join(pieces), tools, prompt=prompt)
    assert [call.name for call in response.tool_calls] == ["weather"]
    assert json.loads(response.tool_calls[0].arguments)["unit"] in ("C", "F")
    assert response.content == ""
    assert "".join(pieces).startswith(f"<|channel|>{channel}")
