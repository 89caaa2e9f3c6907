"""Folders of Mistral with each kind of vocabulary that they ship."""

import base64
import json

import pytest
import sentencepiece
from tiny_models import TINY_LLAMA, randomize
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import MistralConfig, MistralForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pipezoo import registry
from pipezoo_core.errors import InvalidRequestError, UnsupportedTokenizerError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_mistral.tokenizer import load_tokenizer

TEXT = """The most frequent string of bytes comes first, and the most frequent pair of neighbours is joined first.
HelloWorld, helloWorld: don't cut 12345 in one piece. naïve Ünïcödé, Привет мир, 漢字 and 😀 are bytes, too.
"""
PATTERN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}]*[\p{Ll}\p{Lo}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NUM_SPECIAL = 30


@pytest.fixture(scope="module")
def trained():
    """Byte-level BPE with the merges that its training found: the oracle, without special tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


def write_tekken(folder, trained, **changes):
    characters = json.loads(trained.to_str())["model"]["vocab"]
    listed = sorted(characters, key=characters.get)
    alphabet = {character: byte for byte, character in bytes_to_unicode().items()}
    strings = [bytes(alphabet[character] for character in token) for token in listed]
    found = {
        "config": {
            "pattern": PATTERN,
            "default_vocab_size": NUM_SPECIAL + len(strings),
            "default_num_special_tokens": NUM_SPECIAL,
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(string).decode(), "token_str": None}
            for rank, string in enumerate([*strings, b"more than the model knows"])
        ],
        **changes,
    }
    (folder / "tekken.json").write_text(json.dumps(found))


@pytest.mark.parametrize("text", [*TEXT.splitlines(), TEXT, "", "  \n\n x", "unseen: żółć ₿", "HelloHello"])
def test_tekken_equals_the_merges_it_was_made_of(tmp_path, trained, text):
    write_tekken(tmp_path, trained)
    tokenizer = load_tokenizer(tmp_path)
    tokens = tokenizer.encode(text)
    assert tokens == [1, *(token + NUM_SPECIAL for token in trained.encode(text).ids)]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_special_tokens_of_tekken(tmp_path, trained):
    write_tekken(tmp_path, trained)
    old = load_tokenizer(tmp_path)
    assert len(old) == NUM_SPECIAL + trained.get_vocab_size()
    assert old.encode("[INST][/INST]</s>", add_special_tokens=False) == [3, 4, 2]
    assert old.convert_ids_to_tokens([0, 11, 19, 20, 29]) == [
        "<unk>", "<pad>", "[TOOL_CONTENT]", "<SPECIAL_20>", "<SPECIAL_29>"
    ]  # fmt: skip
    listed = [{"rank": i, "token_str": name} for i, name in enumerate(("<unk>", "<s>", "</s>", "[THINK]"))]
    write_tekken(tmp_path, trained, special_tokens=listed[::-1])
    new = load_tokenizer(tmp_path)
    assert new.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<unk>", "<s>", "</s>", "[THINK]", "<SPECIAL_4>"]
    assert (new.bos_token_id, new.eos_token_id, new.pad_token_id) == (1, 2, None)


@pytest.fixture
def folder(tmp_path):
    randomize(MistralForCausalLM(MistralConfig(**{**TINY_LLAMA, "vocab_size": 500}))).save_pretrained(tmp_path)
    return tmp_path


def load(folder):
    return registry.load(folder, dtype="float32", device="cpu", kv_cache_memory="4MiB")


SETTINGS = {"max_new_tokens": 4, "ignore_eos": True}


def test_a_folder_with_tekken_only(folder, trained):
    write_tekken(folder, trained)
    llm = load(folder)
    assert llm.tokenizer.eos_token_ids == {2}
    assert len(llm.generate("Hello 12", **SETTINGS)[0].tokens) == 4
    with pytest.raises(InvalidRequestError, match="no chat template"):
        llm.chat([{"role": "user", "content": "Hello"}])
    (folder / "chat_template.jinja").write_text("[INST]{{ messages[0].content }}[/INST]")
    llm = load(folder)
    text = llm.tokenizer.apply_chat_template([{"role": "user", "content": "H"}])
    assert llm.tokenizer.encode(text, False).tolist()[::2] == [3, 4]


def test_a_folder_with_sentencepiece_only(folder):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    assert len(load(folder).generate("Hello 12", **SETTINGS)[0].tokens) == 4


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"config": {"default_num_special_tokens": 3}}'])
def test_a_damaged_tekken_is_refused(folder, text):
    (folder / "tekken.json").write_text(text)
    with pytest.raises(UnsupportedTokenizerError, match="cannot be read"):
        load(folder)


def test_a_folder_without_a_vocabulary_is_refused(folder):
    with pytest.raises(UnsupportedTokenizerError, match=r"no tokenizer .*tokenizer.json, tokenizer.model.*tekken.json"):
        load(folder)


HELLO, HI = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi  "}
SYSTEM = {"role": "system", "content": "Be 12"}
CHATS = {
    "v3": "<s>[INST]Hello[/INST]Hi</s>[INST]Be 12\n\nHello[/INST]",
    "v7": "<s>[SYSTEM_PROMPT]Be 12[/SYSTEM_PROMPT][INST]Hello[/INST]Hi</s>[INST]Hello[/INST]",
}


@pytest.mark.parametrize("version", ["v3", "v7", "v11", "v13", "v99", None, 7])
def test_a_tekken_without_a_template_has_that_of_its_version(folder, trained, version):
    """Written by hand, from the rules of mistral_common's encoders."""
    write_tekken(folder, trained)
    settings = json.loads((folder / "tekken.json").read_text())
    settings["config"]["version"] = version
    (folder / "tekken.json").write_text(json.dumps(settings))
    tokenizer = load(folder).tokenizer
    messages = [SYSTEM, HELLO, HI, HELLO]
    if version not in ("v3", "v7", "v11", "v13"):
        with pytest.raises(InvalidRequestError, match="no chat template"):
            tokenizer.apply_chat_template(messages)
        return
    expected = CHATS["v3" if version == "v3" else "v7"]
    assert tokenizer.apply_chat_template(messages) == expected
    context = tokenizer.new_context(TextGenerationRequest(messages=messages))
    assert context.tokens == tokenizer.encode(expected, add_special_tokens=False).tolist()
    for wrong in (
        {"messages": messages, "tools": [{"type": "function"}]},
        {"messages": [HELLO, {**HI, "role": "tool"}]},
    ):
        with pytest.raises(InvalidRequestError, match="the model's own"):
            tokenizer.apply_chat_template(**wrong)
