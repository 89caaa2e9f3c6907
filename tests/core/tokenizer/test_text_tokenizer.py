"""Requests to contexts: one BOS, one kind of prompt, ids in the vocabulary, chats by the model's template."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from pipezoo_core.errors import (
    CorruptCheckpointError,
    EmptyPromptError,
    InvalidRequestError,
    PromptTooLongError,
    UnsupportedTokenizerError,
)
from pipezoo_core.interfaces import PipelineTokenizer
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.tokenizer import TextTokenizer, eos_token_ids, load_tokenizer, tokenizer_from_gguf

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no role ' + m.role) }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT = [{"role": "user", "content": "hello"}]


def make_tokenizer(metadata, **changes):
    values = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    delegate = tokenizer_from_gguf({**metadata, "tokenizer.chat_template": TEMPLATE, **values})
    return TextTokenizer(delegate, max_length=32, sampling_params=SamplingParams(top_k=7), eos_token_ids=[271])


@pytest.fixture(scope="module")
def tokenizer(byte_level_metadata):
    return make_tokenizer(byte_level_metadata, add_bos_token=True)


@pytest.fixture
def warnings_logged(monkeypatch, caplog):
    """What transformers, too, logs at warning level or above; it keeps its records to itself by default."""
    from transformers import logging as transformers_logging

    monkeypatch.setattr(transformers_logging.get_logger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        yield caplog  # its records are of the phase in which they are asked for


def new_context(tokenizer, prompt=None, messages=None, **sampling):
    params = SamplingParams(**sampling) if sampling else None
    request = TextGenerationRequest(prompt=prompt, messages=messages, sampling_params=params, request_id="r")
    return tokenizer.new_context(request)


def pieces(tokenizer, tokens):
    return tokenizer.delegate.convert_ids_to_tokens(list(tokens))


def test_it_is_a_pipeline_tokenizer(tokenizer):
    assert isinstance(tokenizer, PipelineTokenizer)
    assert tokenizer.eos_token_ids == frozenset({271})


def test_text_becomes_a_context(tokenizer):
    context = new_context(tokenizer, "hello")
    assert pieces(tokenizer, context.tokens) == ["<bos>", "hello"]
    assert context.tokens == [int(token) for token in context.tokens]
    assert (context.request_id, context.max_num_tokens, context.sampling_params.top_k) == ("r", 32, 7)
    assert context.stop_token_ids == {271}
    assert new_context(tokenizer, "a", top_k=3, stop_token_ids=[5]).stop_token_ids == {5, 271}


def test_token_ids_are_used_as_they_are(tokenizer):
    assert new_context(tokenizer, [5, 6]).tokens == [5, 6]
    assert new_context(tokenizer, np.array([5, 6])).tokens == [5, 6]
    assert tokenizer.encode([5, 6]).dtype == np.int64


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("text", ["hello", "<bos>hello", "<bos><bos>hello", "<bos>", "hello<bos>"])
def test_a_text_has_its_own_bos_or_one(byte_level_metadata, adds_bos, text):
    tokenizer = make_tokenizer(byte_level_metadata, add_bos_token=adds_bos)
    found = "".join(pieces(tokenizer, new_context(tokenizer, text).tokens))
    assert found == ("<bos>" + text if adds_bos and not text.startswith("<bos>") else text)


def test_sentencepiece_text_has_one_bos(sentencepiece_metadata):
    tokenizer = make_tokenizer(sentencepiece_metadata)
    for text in ("the", "<s>the"):
        assert pieces(tokenizer, tokenizer.encode(text)) == ["<s>", "▁the"]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_chat_has_the_bos_of_its_template_alone(byte_level_metadata, adds_bos):
    tokenizer = make_tokenizer(byte_level_metadata, add_bos_token=adds_bos)
    assert tokenizer.apply_chat_template(CHAT) == "<bos>[user]hello[assistant]"
    tokens = new_context(tokenizer, messages=CHAT).tokens
    assert tokens.count(tokenizer.delegate.bos_token_id) == 1
    assert tokenizer.decode(tokens) == "[user]hello[assistant]"


def test_decode_leaves_special_tokens_out(tokenizer):
    assert tokenizer.decode(tokenizer.encode("hello <eot>.")) == "hello ."


@pytest.mark.parametrize("prompt", ["", [], np.array([], dtype=np.int64)])
def test_an_empty_prompt_is_refused(tokenizer, prompt):
    with pytest.raises(EmptyPromptError):
        new_context(tokenizer, prompt)


def test_a_chat_without_messages_is_refused(tokenizer):
    with pytest.raises(EmptyPromptError):
        new_context(tokenizer, messages=[])


def test_exactly_one_of_prompt_and_messages(tokenizer):
    with pytest.raises(InvalidRequestError, match="neither"):
        new_context(tokenizer)
    with pytest.raises(InvalidRequestError, match="both"):
        new_context(tokenizer, "a", CHAT)


def test_a_prompt_that_is_too_long_is_refused_without_noise(byte_level_metadata, warnings_logged):
    tokenizer = make_tokenizer(byte_level_metadata)
    tokenizer.delegate.model_max_length = 8
    with pytest.raises(PromptTooLongError):
        new_context(tokenizer, "a b" * 32)
    assert not warnings_logged.records


@pytest.mark.parametrize("token", [-1, 274, 1.5, "5", None])
def test_token_ids_outside_the_vocabulary_are_refused(tokenizer, token):
    with pytest.raises(InvalidRequestError, match=r"of prompt is not in the vocabulary .*0 to 273"):
        new_context(tokenizer, [5, token])


@pytest.mark.parametrize("sampling", [{"stop_token_ids": [274]}, {"logit_bias": {274: 1.0}}])
def test_token_ids_of_settings_are_checked(tokenizer, sampling):
    with pytest.raises(InvalidRequestError, match=next(iter(sampling))):
        new_context(tokenizer, "a", **sampling)


@pytest.mark.parametrize("message", ["hello", {"role": "user"}, {"role": 1, "content": "a"}, {"content": "a"}])
def test_messages_that_are_not_sound_are_refused(tokenizer, message):
    with pytest.raises(InvalidRequestError, match="message 2 of the chat"):
        tokenizer.apply_chat_template([*CHAT, message])


def test_a_template_that_refuses(tokenizer):
    with pytest.raises(InvalidRequestError, match="no role system") as error:
        tokenizer.apply_chat_template([{"role": "system", "content": "a"}])
    assert error.value.__cause__ is not None


def test_a_template_cannot_reach_python(byte_level_metadata):
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    delegate = tokenizer_from_gguf({**byte_level_metadata, "tokenizer.chat_template": template})
    tokenizer = TextTokenizer(delegate, max_length=8, sampling_params=SamplingParams(), eos_token_ids=[])
    with pytest.raises(InvalidRequestError):
        tokenizer.apply_chat_template(CHAT)


def test_no_template(byte_level):
    tokenizer = TextTokenizer(byte_level, max_length=8, sampling_params=SamplingParams(), eos_token_ids=[])
    with pytest.raises(InvalidRequestError, match="no chat template"):
        tokenizer.apply_chat_template(CHAT)


def test_a_huge_template_is_refused(byte_level_metadata):
    delegate = tokenizer_from_gguf({**byte_level_metadata, "tokenizer.chat_template": "x" * ((1 << 20) + 1)})
    with pytest.raises(UnsupportedTokenizerError, match="template is too large"):
        TextTokenizer(delegate, max_length=8, sampling_params=SamplingParams(), eos_token_ids=[])


@pytest.mark.parametrize("metadata", ["byte_level_metadata", "sentencepiece_metadata"])
def test_a_saved_folder_gives_the_same_tokenizer(request, metadata, tmp_path, warnings_logged):
    saved = make_tokenizer(request.getfixturevalue(metadata), add_bos_token=True)
    saved.delegate.save_pretrained(tmp_path)
    loaded = TextTokenizer(load_tokenizer(tmp_path), max_length=32, sampling_params=SamplingParams(), eos_token_ids=[])
    for text in ("hello 12 é😀 ", "<think>the"):
        assert loaded.encode(text).tolist() == saved.encode(text).tolist()
    assert loaded.apply_chat_template(CHAT) == saved.apply_chat_template(CHAT)
    assert not warnings_logged.records


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(UnsupportedTokenizerError, match=r"has no tokenizer \(allowed: one of tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UnsupportedTokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_needs_the_folders_code(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UnsupportedTokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "generation_config", "expected"),
    [
        (None, {}, {271, 272}),
        (5, {}, {5, 271, 272}),
        ([5, 6], {}, {5, 6, 271, 272}),
        (5, {"eos_token_id": [7, 8]}, {7, 8, 271, 272}),
        (5, {"eos_token_id": None}, {5, 271, 272}),
        (-1, {}, {271, 272}),
    ],
)
def test_end_tokens(byte_level, config, generation_config, expected):
    assert eos_token_ids(byte_level, SimpleNamespace(eos_token_id=config), generation_config) == expected


@pytest.mark.parametrize("end", [True, [6, False], "2", [[2]], 2.5])
def test_an_end_that_is_no_token_is_an_error(byte_level, end):
    for config, generation_config in ((5, {"eos_token_id": end}), (end, {})):
        with pytest.raises(CorruptCheckpointError, match="eos_token_id is no number of a token"):
            eos_token_ids(byte_level, SimpleNamespace(eos_token_id=config), generation_config)


def test_a_tokenizer_without_special_tokens_is_no_reason_for_noise(byte_level_metadata, warnings_logged):
    named = ("bos_token_id", "eos_token_id", "eot_token_id")
    metadata = {key: value for key, value in byte_level_metadata.items() if not key.endswith(named)}
    tokenizer = make_tokenizer(metadata)
    assert eos_token_ids(tokenizer.delegate, SimpleNamespace(), {}) == frozenset()
    assert pieces(tokenizer, tokenizer.encode("hello")) == ["hello"]
    assert not warnings_logged.records


def test_end_tokens_without_a_turns_end(sentencepiece):
    assert eos_token_ids(sentencepiece, SimpleNamespace(), {}) == {2}


@pytest.mark.parametrize("metadata", ["byte_level_metadata", "sentencepiece_metadata"])
def test_the_texts_of_a_texts_tokens_are_the_text(request, metadata):
    tokenizer = make_tokenizer(request.getfixturevalue(metadata))
    text = "the there  in the"
    tokens = tokenizer.encode(text, add_special_tokens=False).tolist()
    assert "".join(tokenizer.text_of(token) for token in tokens).removeprefix(" ") == text
    end = max(tokenizer.delegate.all_special_ids)
    assert tokenizer.text_of(end) == tokenizer.delegate.convert_ids_to_tokens(end)


def test_the_text_of_a_part_of_a_character_and_of_a_token_without_any(byte_level):
    tokenizer = TextTokenizer(
        byte_level, max_length=8, sampling_params=SamplingParams(), eos_token_ids=[], vocab_size=999
    )
    assert tokenizer.text_of(0xC3) == "\ufffd"
    assert tokenizer.text_of(998) == ""


@pytest.mark.parametrize("num", [2, 3, 5, 31])
def test_a_prompt_is_truncated_as_transformers_does_on_the_left(byte_level_metadata, num):
    """With its BOS token."""
    tokenizer = make_tokenizer(byte_level_metadata, add_bos_token=True)
    delegate, text = tokenizer.delegate, "hello wo 12 wo"
    delegate.truncation_side = "left"
    expected = delegate.encode(text, truncation=True, max_length=num)
    assert new_context(tokenizer, text, truncate_prompt_tokens=num).tokens == expected
    assert pieces(tokenizer, expected)[0] == "<bos>"


@pytest.mark.parametrize("metadata", ["byte_level_metadata", "sentencepiece_metadata"])
def test_a_bad_word_is_known_wherever_it_stands(request, metadata):
    """By the tokens that it has alone, after a space, and in the middle of a word."""
    tokenizer = make_tokenizer(request.getfixturevalue(metadata))
    words = new_context(tokenizer, "a", bad_words=["the"]).bad_words
    for text in ("the", "in the", "inthe"):
        tokens = tokenizer.encode(text, add_special_tokens=False).tolist()
        assert any(tokens[-len(word) :] == word for word in words), text
    assert len({tuple(word) for word in words}) == len(words)


@pytest.mark.parametrize("id_", [1 << 24, (1 << 32) - 1])
def test_an_id_that_is_far_too_large_is_refused(byte_level, tmp_path, id_):
    """Some calls of the library walk over all ids below, for a minute at worst."""
    byte_level.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["model"]["vocab"]["far"] = id_
    path.write_text(json.dumps(settings), "utf-8")
    delegate = load_tokenizer(tmp_path)
    with pytest.raises(UnsupportedTokenizerError, match=f"above that of any vocabulary .found: {id_};"):
        TextTokenizer(delegate, max_length=32, sampling_params=SamplingParams(), eos_token_ids=[])


BROKEN = {
    "no tokens": ("tokenizer.json", lambda settings: settings["model"].update(vocab={}, merges=[])),
    "an unknown token without letters": ("tokenizer_config.json", lambda settings: settings.update(unk_token="")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_would_fail_at_every_request_is_refused_at_once(byte_level, tmp_path, name):
    byte_level.save_pretrained(tmp_path)
    file, change = BROKEN[name]
    settings = json.loads((tmp_path / file).read_text("utf-8"))
    change(settings)
    if name == "no tokens":
        settings["added_tokens"] = []
        (tmp_path / "tokenizer_config.json").unlink()  # which names some
    (tmp_path / file).write_text(json.dumps(settings), "utf-8")
    with pytest.raises(UnsupportedTokenizerError):
        TextTokenizer(load_tokenizer(tmp_path), max_length=32, sampling_params=SamplingParams(), eos_token_ids=[])
