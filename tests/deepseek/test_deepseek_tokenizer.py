"""DeepSeek's tokenizers and chats, of a folder and of a GGUF file, against transformers."""

import pytest
from deepseek.tiny_deepseek import make
from gguf_files import BYTES
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipezoo import registry
from pipezoo_core.tokenizer import tokenizer_from_gguf

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "' s", "1 2", "12 3", "Ġ Ġ", ". a", "Ã ©", "Ġ Ã©"]
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
ROLES = ["<｜User｜>", "<｜Assistant｜>"]
CALLS = ["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"]
WORDS = ["<think>", "</think>"]
SPECIAL = [BEGIN, END]
TOKENS = [*BYTES, *(merge.replace(" ", "") for merge in MERGES), *SPECIAL, *ROLES, *CALLS, *WORDS]
# Each model's own cuts, as its tokenizer.json has them.
SPLITS = {
    "deepseek_v2": [
        "[\r\n]",
        "\\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+",  # and further letters, none of them in the texts below
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        "\\s+$",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    ],
    "deepseek_v3": [
        "\\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ],
}
PRE = {"deepseek_v2": "deepseek-llm", "deepseek_v3": "deepseek-v3"}
# What the templates of V3 and R1 do: the system's messages first, thoughts of earlier turns left out, calls of tools.
TEMPLATE = """\
{%- set found = namespace(system='', is_first=true, is_tool=false) %}
{%- for message in messages %}{% if message['role'] == 'system' %}
{%- set found.system = found.system + message['content'] %}{% endif %}{% endfor %}
{{- bos_token }}{{ found.system }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{% set found.is_tool = false %}{{ '<｜User｜>' + message['content'] }}{% endif %}
{%- if message['role'] == 'assistant' and message['tool_calls'] %}
{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
{%- for call in message['tool_calls'] %}
{{- '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' }}
{{- call['function']['arguments'] | tojson }}{{ '<｜tool▁call▁end｜>' }}{% endfor %}{{ eos_token }}
{%- elif message['role'] == 'assistant' %}
{%- set text = message['content'] %}
{%- if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + text + eos_token }}{% endif %}
{%- if message['role'] == 'tool' %}{% set found.is_tool = true %}{{ '\\n' + message['content'] }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and not found.is_tool %}{{ '<｜Assistant｜>' }}
{%- if thinking is defined and thinking %}{{ '<think>\\n' }}{% endif %}{% endif %}"""
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "blue"}'},
    {"role": "assistant", "content": "<think>Blue?</think>Blue."},
    {"role": "user", "content": "Sure?"},
]
TEXTS = [
    "hello world",
    "IT's 12345.\n\n x",
    "    hello\r\n",
    "é café.ab  ",
    "中文 のテスト 한국어\uff0c123",
    "<｜User｜>hello<｜end▁of▁sentence｜>",
    "<think> 12",
]


def make_tokenizer(family):
    """As its tokenizer.json is: byte-level BPE, and a BOS token before every text."""
    vocabulary = {token: i for i, token in enumerate(TOKENS[: len(BYTES) + len(MERGES)])}
    plain = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in MERGES]))
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in SPLITS[family]]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if family == "deepseek_v2" else []
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, *digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    plain.add_tokens([AddedToken(token, normalized=False) for token in (*ROLES, *CALLS, *WORDS)])
    bos = (BEGIN, TOKENS.index(BEGIN))
    plain.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[bos])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token=BEGIN, eos_token=END, pad_token=END)
    tokenizer.chat_template = TEMPLATE
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(len(TOKENS))] == TOKENS
    return tokenizer


@pytest.fixture(scope="module", params=PRE)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def llm(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp(family)
    ids = {"bos_token_id": TOKENS.index(BEGIN), "eos_token_id": TOKENS.index(END)}
    make(family, vocab_size=len(TOKENS), **ids).save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    with registry.load(folder, dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        yield llm


def of_gguf(family):
    num_added = len(ROLES) + len(CALLS) + len(WORDS)
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": PRE[family],
            "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.token_type": [1] * (len(TOKENS) - num_added - 2) + [3] * 2 + [4] * num_added,
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.bos_token_id": TOKENS.index(BEGIN),
            "tokenizer.ggml.eos_token_id": TOKENS.index(END),
            "tokenizer.ggml.padding_token_id": TOKENS.index(END),
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.chat_template": TEMPLATE,
        }
    )


def test_texts_have_the_tokens_of_transformers(llm, family):
    reference = make_tokenizer(family)
    for text in TEXTS:
        expected = reference.encode(text, add_special_tokens=False)
        assert llm.tokenizer.encode(text, add_special_tokens=False).tolist() == expected
        assert llm.tokenizer.encode(text).tolist() == reference.encode(text) == [TOKENS.index(BEGIN), *expected]
        assert llm.tokenizer.decode(expected) == text.replace(END, "")


def test_a_gguf_file_has_the_same_tokens(family):
    found, reference = of_gguf(family), make_tokenizer(family)
    for text in TEXTS:
        expected = reference.encode(text, add_special_tokens=False)
        assert found.encode(text, add_special_tokens=False) == expected
        assert found.encode(text) == [TOKENS.index(BEGIN), *expected]
    assert found.apply_chat_template(CHAT, tokenize=False) == reference.apply_chat_template(CHAT, tokenize=False)
    assert (found.bos_token, found.eos_token) == (BEGIN, END)


@pytest.mark.parametrize("messages", [CHAT[:2], CHAT[1:2], CHAT[:4], CHAT], ids=["first", "plain", "tool", "later"])
@pytest.mark.parametrize("variables", [{}, {"thinking": True}], ids=["plain", "thinks"])
def test_chats_render_as_transformers_renders_them(llm, family, messages, variables):
    reference = make_tokenizer(family)
    expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    assert llm.tokenizer.apply_chat_template(messages, chat_template_kwargs=variables) == expected
    assert expected.startswith(BEGIN)
    assert "Blue?" not in expected


def test_a_chat_begins_with_one_bos_token(llm, family):
    """The template writes it, and so the tokenizer does not."""
    output = llm.chat([{"role": "user", "content": "hello"}], max_new_tokens=1, ignore_eos=True)
    expected = make_tokenizer(family).encode(f"{BEGIN}{ROLES[0]}hello{ROLES[1]}", add_special_tokens=False)
    assert output.usage.num_prompt_tokens == len(expected)


def test_an_answer_ends_at_the_end_of_a_sentence(llm):
    assert llm.tokenizer.eos_token_ids == {TOKENS.index(END)}
