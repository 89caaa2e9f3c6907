"""A SentencePiece vocabulary of the kind that Replit's first model has, and the files beside it."""

import json

import pytest
import sentencepiece

CODE = '''def area(width: float, height: float) -> float:
    """Returns width times height."""
    return width * height

class Queue:
    def __init__(self, items=None):
        self.items = list(items or [])
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop(0)

for number in range(10):
    print("number", number, number ** 2 if number % 2 == 0 else "odd")
'''
SPECIAL = {"pad_token": "<|pad|>", "eos_token": "<|endoftext|>", "unk_token": "<|unk|>"}
TOKENIZER_CONFIG = {
    "auto_map": {"AutoTokenizer": ["replit_lm_tokenizer.ReplitLMTokenizer", None]},
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 2048,
    "padding_side": "right",
    "sep_token": None,
    "sp_model_kwargs": {},
    "tokenizer_class": "ReplitLMTokenizer",
    **SPECIAL,
}
# For code every space counts. The other is how SentencePiece does it unless told otherwise.
KINDS = {
    "code": {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "vocab_size": 330,
    },
    "prose": {"vocab_size": 90},
}


def write_vocabulary(folder, kind):
    """Trains a vocabulary on a little code and writes all that a folder has for its tokenizer."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CODE.splitlines()),
        model_prefix=str(folder / "spiece"),
        model_type="unigram",
        hard_vocab_limit=False,
        pad_id=0,
        pad_piece=SPECIAL["pad_token"],
        eos_id=1,
        eos_piece=SPECIAL["eos_token"],
        unk_id=2,
        unk_piece=SPECIAL["unk_token"],
        bos_id=-1,
        minloglevel=2,
        **KINDS[kind],
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
    (folder / "replit_lm_tokenizer.py").write_text("raise AssertionError('remote code was run')")
    return folder


@pytest.fixture(scope="session")
def code_vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("code"), "code")


@pytest.fixture(scope="session")
def prose_vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("prose"), "prose")


@pytest.fixture(params=KINDS)
def vocabulary(request):
    return request.getfixturevalue(f"{request.param}_vocabulary")
