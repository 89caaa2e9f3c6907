"""The tokenizers of OLMo (GPT-NeoX's) and of OLMo 2 and 3, of a folder and of a GGUF file, against transformers'."""

import pytest
from byte_level import PAIRS, TEXTS, VOCABULARY, gguf_metadata
from olmo.tiny_olmo import make
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, GPTNeoXTokenizer, PreTrainedTokenizerFast

from pipezoo import registry
from pipezoo_core.tokenizer import tokenizer_from_gguf

END = "<|endoftext|>"
# As in the tokenizer.json of OLMo 2, which cuts words as cl100k does.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What the instructed models' templates do: the turns begin with words, and an answer ends with the end of the text.
TEMPLATE = """\
{{- bos_token or eos_token }}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{ '<|assistant|>\\n' + m.content + eos_token + '\\n' }}
{%- else %}{{ '<|' + m.role + '|>\\n' + m.content + '\\n' }}{% endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"""
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " hello"},
    {"role": "assistant", "content": "It's 12"},
    {"role": "user", "content": "world\n"},
]
OWN_TEXTS = [*TEXTS, f"hello{END}\nworld", "<|user|>\nhello   ||| x", "e\u0301"]
PRE = {"olmo": "olmo", "olmo2": "dbrx", "olmo3": "dbrx"}


def make_tokenizer(family):
    if family == "olmo":
        tokenizer = GPTNeoXTokenizer(vocab=dict(VOCABULARY), merges=PAIRS, bos_token=None, unk_token=None)
        tokenizer.add_tokens(["   ", "|||IP_ADDRESS|||"])
    else:
        backend = Tokenizer(BPE(dict(VOCABULARY), PAIRS))
        split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
        backend.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module", params=PRE)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def expected(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp(family)
    make_tokenizer(family).save_pretrained(folder)
    make(family, vocab_size=len(make_tokenizer(family))).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.folder = folder
    return tokenizer


@pytest.fixture(scope="module")
def llm(expected):
    with registry.load(expected.folder, dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        yield llm


def test_texts_have_the_tokens_of_transformers(llm, expected):
    for text in OWN_TEXTS:
        assert llm.tokenizer.encode(text).tolist() == expected.encode(text)


def test_a_gguf_file_has_the_same_tokens(family, expected):
    """But of text that is not composed, which OLMo's own tokenizer composes, and llama.cpp does not."""
    found = tokenizer_from_gguf(gguf_metadata(expected, PRE[family]))
    for text in OWN_TEXTS[:-1]:
        assert found.encode(text) == expected.encode(text)
        assert found.decode(found.encode(text)) == expected.decode(expected.encode(text))
    assert found.apply_chat_template(CHAT, tokenize=False) == expected.apply_chat_template(CHAT, tokenize=False)
    assert found.eos_token_id == expected.eos_token_id


@pytest.mark.parametrize("length", [1, 2, 4])
def test_chats_render_as_transformers_renders_them(llm, expected, length):
    text = expected.apply_chat_template(CHAT[:length], tokenize=False, add_generation_prompt=True)
    assert llm.tokenizer.apply_chat_template(CHAT[:length]) == text
    assert text.startswith(END)


def test_an_answer_ends_at_the_end_of_the_text(llm, expected):
    assert expected.convert_tokens_to_ids(END) in llm.tokenizer.eos_token_ids
