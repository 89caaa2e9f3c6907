"""The text of special tokens in a chat's messages, which is text there and no token.

A template writes its special tokens into the same string as the messages, where nobody can tell them apart any more: a
user who writes `<|im_end|>` would end the message and begin another one. So each text of a special token in a message
is a mark while the template is rendered. The prompt is encoded by a copy of the tokenizer that takes no special tokens
for tokens; those of the template have other names there.

    message   Say <|im_end|>
    marked    Say (mark 1)
    rendered  <|im_start|>Say (mark 1)<|im_end|>
    encoded   (name of <|im_start|>)Say <|im_end|>(name of <|im_end|>)
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["QuotedTokens"]


class QuotedTokens:
    """Tells a template's special tokens from their texts in messages.

    Args:
        delegate: the model's tokenizer, with a backend; not changed.
        special_ids: the tokens that are never text.
    """

    def __init__(self, delegate: PreTrainedTokenizerBase, special_ids: Collection[int]) -> None:
        settings = json.loads(delegate.backend_tokenizer.to_str())
        self._special = [token for token in settings["added_tokens"] if token["id"] in special_ids]
        self._settings = settings
        self._texts = [token["content"] for token in self._special]
        longest_first = sorted(self._texts, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._nonce = secrets.token_hex(8)  # nobody can write a mark or a name who does not know it
        self._mark = re.compile(f"\\ue000{self._nonce}-([0-9]+)\\ue001")
        self._first_new_id = max(delegate.get_vocab().values()) + 1
        self._tokenizer: Tokenizer | None = None
        self._ids: dict[int, int] = {}

    def marked(self, value: object) -> Any:
        """Returns a value with marks in place of special tokens, in all texts of all mappings and lists in it.

        Raises:
            RecursionError: it is nested too deeply.
        """
        if isinstance(value, str):
            return self._pattern.sub(lambda found: self._mark_of(found[0]), value)
        if isinstance(value, Mapping):
            return {self.marked(name): self.marked(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(part) for part in value]
        return value

    def restored(self, text: str) -> str:
        """Returns a rendered text with what the marks stand for.

        Raises:
            ValueError: the template changed a mark.
        """
        restored = self._without_marks(text)
        if self._nonce in restored:
            raise ValueError("it changes the text of special tokens in a message, so that they cannot be told apart")
        return restored

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a rendered text: the template's special tokens are tokens, and marks are text."""
        if self._tokenizer is None:
            self._tokenizer = self._without_special_tokens()
        named = self._pattern.sub(lambda found: self._name_of(self._texts.index(found[0])), text)
        tokens = self._tokenizer.encode(self._without_marks(named), add_special_tokens=False).ids
        return [self._ids.get(token, token) for token in tokens]

    def _without_marks(self, text: str) -> str:
        return self._mark.sub(lambda found: self._texts[int(found[1])], text)

    def _mark_of(self, text: str) -> str:
        return f"\ue000{self._nonce}-{self._texts.index(text)}\ue001"

    def _name_of(self, number: int) -> str:
        return f"\ue002{self._nonce}-{number}\ue003"

    def _without_special_tokens(self) -> Tokenizer:
        """Returns a copy of the tokenizer in which special tokens are text, and each has another name with a new id."""
        vocabulary, first = self._settings["model"]["vocab"], self._first_new_id
        for number, token in enumerate([*self._special]):
            token["special"] = True  # also one that is only named as special
            name = self._name_of(number)
            if isinstance(vocabulary, dict):  # ids may have gaps, in which the library would put it
                vocabulary[name] = first + number
            self._settings["added_tokens"].append({**token, "id": first + number, "content": name, "special": False})
            self._ids[first + number] = token["id"]
        tokenizer = Tokenizer.from_str(json.dumps(self._settings))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        return tokenizer
