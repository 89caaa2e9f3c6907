"""Byte-level vocabularies of transformers' tokenizers, and as llama.cpp's converter writes them into a GGUF file."""

from gguf_files import BYTES

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "' s", "' S", "Ċ Ċ", "Ġ Ġ", "1 2", "12 3", ". Ċ", "Ã ©", "ĠĠ ĠĠ"]
VOCABULARY = {token: i for i, token in enumerate([*BYTES, *(merge.replace(" ", "") for merge in MERGES)])}
PAIRS = [tuple(merge.split()) for merge in MERGES]
TEXTS = ["hello world", "IT'S it's 1234.\n\n x", "    hello\r\n", "é café  ", "世 😀", ""]


def gguf_metadata(tokenizer, pre, **named):
    """Returns what the converter writes of a tokenizer.

    Args:
        tokenizer: of transformers.
        pre: what llama.cpp calls the way it cuts text into words.
        named: further entries below `tokenizer.ggml`.
    """
    added = tokenizer.added_tokens_decoder
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    kinds = [(CONTROL if added[i].special else USER_DEFINED) if i in added else NORMAL for i in range(len(tokens))]
    entries = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": kinds,
        "merges": MERGES,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **named,
    }
    found = {f"tokenizer.ggml.{key}": value for key, value in entries.items() if value is not None}
    return found | {"tokenizer.chat_template": tokenizer.chat_template}
