"""What a plugin tells the registry about one architecture.

Knows no torch at run time: the registry asks for it before anything heavy is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipezoo_core.config import Capability, SupportedEncoding, WeightsFormat

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pipezoo_core.interfaces import PipelineModel
    from pipezoo_core.weights import GGUFFile, WeightsAdapter

__all__ = ["DATA_ENDINGS", "SupportedArchitecture"]

DATA_ENDINGS = (".jinja", ".json", ".model", ".safetensors", ".tiktoken", ".txt")
"""What the names of files end in that a plugin can ask for: none of them is code, or can hold any."""

_FILE = re.compile(r"[\w*][\w.*-]*", re.ASCII)


def _accept(_config: Mapping[str, Any]) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportedArchitecture:
    """One architecture of a plugin.

    Attributes:
        name: the name in `architectures` of config.json, e.g. `LlamaForCausalLM`.
        model_types: the Hugging Face `model_type`s it serves, e.g. `("llama",)`.
        pipeline_model: the `PipelineModel` subclass that runs it.
        huggingface_config: builds the typed config from the parsed config.json: `from_dict` of a `PretrainedConfig` of
            the plugin's own, or of transformers' class, whose import takes a second. Raises ValueError for a config
            it cannot express.
        weight_adapters: maps each readable weights format to the function that renames its tensors.
        supported_encodings: what the weights may be run in, the preferred one first.
        config_from_gguf: makes of a GGUF file what its config.json would be; None where GGUF is not read.
        probe: looks at the parsed config.json, of a GGUF file at its `model_type` alone, and returns the reason to
            refuse it, or None.
        aliases: other names in `architectures` for the same thing.
        tokenizer: reads the tokenizer of a folder without tokenizer.json where transformers would need remote code for
            it; returns None for a folder that it leaves to transformers. May raise anything: what it raises becomes
            the cause of an `UnsupportedTokenizerError`.
        files: names of further files that are downloaded of a Hub repository, e.g. `("qwen.tiktoken",)`. They lie at
            its top and may have `*` in them; what they end in says that they are data: see `DATA_ENDINGS`.
        not_claimed: why the plugin does not do with it what others do, by capability, e.g. `{"lora": "its experts are
            one tensor"}`. The conformance kit checks all else.

    Raises:
        ValueError: one of `files` is a path, or may be of another kind, or `not_claimed` gives no reason or names what
            is no `Capability`.
    """

    name: str
    model_types: tuple[str, ...]
    pipeline_model: type[PipelineModel[Any]]
    huggingface_config: Callable[[dict[str, Any]], PretrainedConfig]
    weight_adapters: Mapping[WeightsFormat, WeightsAdapter]
    supported_encodings: tuple[SupportedEncoding, ...] = field(default=tuple(SupportedEncoding))
    config_from_gguf: Callable[[GGUFFile], dict[str, Any]] | None = None
    probe: Callable[[Mapping[str, Any]], str | None] = _accept
    aliases: tuple[str, ...] = ()
    tokenizer: Callable[[Path], PreTrainedTokenizerBase | None] | None = None
    files: tuple[str, ...] = ()
    not_claimed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refused = [name for name in self.files if not (_FILE.fullmatch(name) and name.endswith(DATA_ENDINGS))]
        if refused:
            allowed = f"names that end in {', '.join(DATA_ENDINGS)}"
            raise ValueError(f"files of {self.name} that are not downloaded: {refused}; allowed: {allowed}")
        unknown = [name for name in self.not_claimed if name not in set(Capability)]
        if unknown:
            raise ValueError(f"{self.name} does without unknown capabilities: {unknown}; allowed: {[*Capability]}")
        unexplained = [name for name, reason in self.not_claimed.items() if not reason.strip()]
        if unexplained:
            raise ValueError(f"{self.name} does without {unexplained}, and not_claimed gives no reason")

    @property
    def names(self) -> tuple[str, ...]:
        """All names in `architectures` that it serves."""
        return (self.name, *self.aliases)
