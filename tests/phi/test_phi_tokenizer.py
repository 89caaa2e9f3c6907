"""The tokenizers of Phi (GPT-2's), Phi-3 (SentencePiece) and Phi-4 (cl100k's), against transformers'."""

import pytest
from byte_level import CONTROL, NORMAL, PAIRS, TEXTS, VOCABULARY, gguf_metadata
from phi.tiny_phi import make
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from pipezoo import registry
from pipezoo_core.errors import InvalidRequestError
from pipezoo_core.tokenizer import tokenizer_from_gguf

END = "<|endoftext|>"
TURNS = ["<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
PIECES = ["he", "ll", "hell", "hello", "▁w", "▁hello", "▁▁", "12"]
CHARACTERS = [*"▁helowrdITS'xi12.34\n", "é"]
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# What the templates of Phi-3 and Phi-4 do.
PHI_3_TEMPLATE = """\
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""
PHI_4_TEMPLATE = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "It's 12"},
    {"role": "user", "content": "world\n"},
]
OWN_TEXTS = {
    "phi-2": [*TEXTS, f"hello{END}\nworld", "  hello         world"],
    "phi-3": [*TEXTS, "<|user|>\nhello<|end|>\n<|assistant|>\n hello", "<s>\nhello </s>\n hello", f"hello{END}\nx"],
    "phi-4": [*TEXTS, "<|im_start|>user<|im_sep|>hello<|im_end|>", f"hello{END}\nworld"],
}


def make_phi_2():
    tokenizer = GPT2Tokenizer(vocab=dict(VOCABULARY), merges=PAIRS, unk_token=END, bos_token=END, eos_token=END)
    tokenizer.add_tokens([" " * count for count in range(8, 1, -1)])
    return tokenizer


def make_phi_3():
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *BYTES, *CHARACTERS, *PIECES])}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "w"), ("▁", "hello"), ("▁", "▁"), ("1", "2")]
    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", END)])
    backend.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    backend.add_special_tokens([AddedToken(token, rstrip=True, normalized=False) for token in TURNS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token=END, chat_template=PHI_3_TEMPLATE
    )


def make_phi_4():
    backend = Tokenizer(BPE(dict(VOCABULARY), PAIRS))
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END, "<|im_start|>", "<|im_sep|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END, eos_token="<|im_end|>", chat_template=PHI_4_TEMPLATE
    )


MAKERS = {"phi-2": make_phi_2, "phi-3": make_phi_3, "phi-4": make_phi_4}


def metadata_of(name, tokenizer):
    """What llama.cpp's converter writes, which cannot say that white space behind a token is left out."""
    if name != "phi-3":
        return gguf_metadata(tokenizer, {"phi-2": "phi-2", "phi-4": "dbrx"}[name])
    found = {"general.architecture": "phi3", "tokenizer.ggml.scores": [0.0] * len(tokenizer)}
    found |= gguf_metadata(tokenizer, None, model="llama", unknown_token_id=0, merges=None, add_bos_token=False)
    kinds, tokens = found["tokenizer.ggml.token_type"], found["tokenizer.ggml.tokens"]
    kinds[0], kinds[3:259] = 2, [6] * 256
    for rank, piece in enumerate(PIECES):
        found["tokenizer.ggml.scores"][tokens.index(piece)] = -float(rank)
    assert {kinds[tokens.index(token)] for token in TURNS} == {CONTROL}
    assert {kinds[tokens.index(piece)] for piece in PIECES} == {NORMAL}
    return found


@pytest.fixture(scope="module", params=MAKERS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp(name), MAKERS[name]()
    tokenizer.save_pretrained(folder)
    make("phi" if name == "phi-2" else "phi3", vocab_size=len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def llm(folder):
    with registry.load(folder, dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        yield llm


def test_texts_have_the_tokens_of_transformers(name, llm, expected):
    for text in OWN_TEXTS[name]:
        assert llm.tokenizer.encode(text).tolist() == expected.encode(text)


def test_a_gguf_file_has_the_same_tokens(name, expected):
    found = tokenizer_from_gguf(metadata_of(name, expected))
    for text in OWN_TEXTS[name]:
        assert found.encode(text) == expected.encode(text), text
        assert found.decode(found.encode(text)) == expected.decode(expected.encode(text))
    assert found.eos_token_id == expected.eos_token_id
    if name != "phi-2":
        assert found.apply_chat_template(CHAT, tokenize=False) == expected.apply_chat_template(CHAT, tokenize=False)


def test_chats_render_as_transformers_renders_them(name, llm, expected):
    if name == "phi-2":
        with pytest.raises(InvalidRequestError, match="no chat template"):
            llm.chat(CHAT, max_new_tokens=1)
        return
    for length in (1, 2, 4):
        text = expected.apply_chat_template(CHAT[:length], tokenize=False, add_generation_prompt=True)
        assert llm.tokenizer.apply_chat_template(CHAT[:length]) == text


def test_an_answer_ends_at_the_end_of_a_turn(name, llm, expected):
    end = {"phi-2": END, "phi-3": END, "phi-4": "<|im_end|>"}[name]
    assert expected.convert_tokens_to_ids(end) in llm.tokenizer.eos_token_ids
