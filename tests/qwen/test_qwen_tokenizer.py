"""Qwen's tokenizer and chats, of a folder and of a GGUF file, against transformers' `Qwen2Tokenizer`."""

import pytest
from gguf_files import BYTES
from tiny_models import TINY_LLAMA, randomize
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from pipezoo import registry
from pipezoo_core.tokenizer import tokenizer_from_gguf

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "' S", "Ċ Ċ", "Ġ Ġ", "1 2", ". Ċ", "Ã ©", "ĠĠ ĠĠ", "Ġ Ã©"]
SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
WORDS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]  # tokens of their own that are texts, too
TOKENS = [*BYTES, *(merge.replace(" ", "") for merge in MERGES), *SPECIAL, *WORDS]
# What Qwen's templates do: tools as JSON, thoughts of earlier turns left out, the last user's turn found from the end.
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- set seen = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
{%- if seen.open and message.role == 'user' and message.content is string %}
{%- set seen.last = messages|length - 1 - loop.index0 %}{% set seen.open = false %}{% endif %}{% endfor %}
{%- for message in messages %}{{ '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' }}
{%- set text = message.content or '' %}
{%- if message.role == 'assistant' and loop.index0 < seen.last and '</think>' in text %}
{%- set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{{- text }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Says “how” it is <here>.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "<think>\nWhere?\n</think>\n\n", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "blue"}'},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "Sure?"},
]
TEXTS = [
    "hello world",
    "IT'S 123.\n\n x",
    "    hello\r\n",
    "é café  ",
    "<|im_start|>user\nhello<|im_end|>",
    "<think> 12",
]


def make_tokenizer():
    vocab = {token: i for i, token in enumerate(TOKENS[: -len(SPECIAL) - len(WORDS)])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[tuple(merge.split()) for merge in MERGES], pad_token=SPECIAL[0])
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": SPECIAL})
    tokenizer.add_tokens(WORDS)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, sizes = tmp_path_factory.mktemp("qwen"), {**TINY_LLAMA, "head_dim": 8, "vocab_size": len(TOKENS)}
    randomize(Qwen3ForCausalLM(Qwen3Config(**sizes))).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder):
    with registry.load(folder, dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        yield llm


def test_texts_have_the_tokens_of_transformers(llm):
    for text in TEXTS:
        assert llm.tokenizer.encode(text).tolist() == make_tokenizer().encode(text)


def test_a_gguf_file_has_the_same_tokens():
    num_special, num_words = len(SPECIAL), len(WORDS)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [1] * (len(TOKENS) - num_special - num_words)
        + [3] * num_special
        + [4] * num_words,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": TOKENS.index("<|im_end|>"),
        "tokenizer.ggml.bos_token_id": TOKENS.index("<|endoftext|>"),
        "tokenizer.ggml.padding_token_id": TOKENS.index("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    found, expected = tokenizer_from_gguf(metadata), make_tokenizer()
    for text in TEXTS:
        assert found.encode(text) == expected.encode(text)
    assert found.apply_chat_template(CHAT, tokenize=False) == expected.apply_chat_template(CHAT, tokenize=False)
    assert found.eos_token_id == expected.eos_token_id


@pytest.mark.parametrize("messages", [CHAT[:2], CHAT[:4], CHAT], ids=["first", "tool", "later"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no_tools", "tools"])
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}], ids=["thinks", "does_not"])
def test_chats_render_as_transformers_renders_them(llm, messages, tools, variables):
    expected = make_tokenizer().apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True, **variables
    )
    assert llm.tokenizer.apply_chat_template(messages, tools=tools, chat_template_kwargs=variables) == expected
    assert ("weather" in expected.split("user")[0]) == (tools is not None)
    assert expected.endswith("</think>\n\n") == bool(variables)


def test_an_answer_ends_at_the_end_of_a_turn(llm):
    assert llm.tokenizer.eos_token_ids >= {TOKENS.index("<|im_end|>")}
