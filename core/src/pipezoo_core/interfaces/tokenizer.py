"""What a pipeline needs of a tokenizer. Knows neither a vocabulary nor a library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

__all__ = ["PipelineTokenizer"]

ContextT_co = TypeVar("ContextT_co", covariant=True)
EncodedT = TypeVar("EncodedT")
RequestT_contra = TypeVar("RequestT_contra", contravariant=True)


@runtime_checkable
class PipelineTokenizer(Protocol[ContextT_co, EncodedT, RequestT_contra]):
    """Turns requests into contexts, and text into tokens and back."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens at which the model itself ends an answer."""
        ...

    def new_context(self, request: RequestT_contra) -> ContextT_co:
        """Returns a context that holds the request's prompt and settings.

        Raises:
            InvalidRequestError: the request cannot be served as it stands.
        """
        ...

    def encode(self, prompt: str | Sequence[int], add_special_tokens: bool = True) -> EncodedT:
        """Returns the tokens of a text; token ids are checked and come back as they are.

        Raises:
            InvalidRequestError: a token id is not in the vocabulary.
        """
        ...

    def decode(self, encoded: EncodedT) -> str:
        """Returns the text of tokens, special ones left out."""
        ...
