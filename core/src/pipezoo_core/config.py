"""Settings of a pipeline: frozen, typed, complete after construction; an unknown setting is an error.

Knows no torch. What is None, a function elsewhere fills in; the backends of attention and linear layers that "auto"
means are chosen where they are made.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipezoo_core.settings import Settings

__all__ = [
    "AttentionName",
    "Capability",
    "KVCacheConfig",
    "LinearName",
    "LoRAConfig",
    "PipelineConfig",
    "ReturnLogits",
    "RunConfig",
    "SpeculativeName",
    "SupportedEncoding",
    "WeightsFormat",
    "parse_memory",
]


class SupportedEncoding(enum.StrEnum):
    """The precision that a model is run in.

    With `int8` and `int4` the weights of linear layers are quantized at load, in groups of 32 (a head to 8 bits in
    both); with `packed` those that a file has quantized keep its numbers. Everything else is bfloat16.
    """

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"
    int4 = "int4"
    packed = "packed"

    @property
    def is_quantized(self) -> bool:
        """Whether weights are kept in fewer bits than they are computed with."""
        return self.rounds_weights or self is SupportedEncoding.packed

    @property
    def rounds_weights(self) -> bool:
        """Whether weights are quantized at load."""
        return self in (SupportedEncoding.int8, SupportedEncoding.int4)


class WeightsFormat(enum.StrEnum):
    """File formats of weights that can be read."""

    safetensors = "safetensors"
    gguf = "gguf"


class Capability(enum.StrEnum):
    """What a plugin claims to do with each of its architectures, unless it says why not."""

    lora = "lora"
    replay = "replay"
    tensor_parallelism = "tensor_parallelism"


class ReturnLogits(enum.StrEnum):
    """Of which fed tokens `PipelineModel.execute` returns logits: each request's last, its last few, or all."""

    LAST_TOKEN = "last_token"
    VARIABLE = "variable"
    ALL = "all"


class AttentionName(enum.StrEnum):
    """The attention backends to choose from; `auto` takes the fastest one that can do what the model needs."""

    auto = "auto"
    reference = "reference"
    paged = "paged"
    native = "native"


class LinearName(enum.StrEnum):
    """The ways to compute linear layers; `auto` takes the fastest one that works here, `torch` is plain torch.

    `native` also computes the norms and gated activations between them by the kernels of `pipezoo-kernels`.
    """

    auto = "auto"
    torch = "torch"
    onednn = "onednn"
    native = "native"


class SpeculativeName(enum.StrEnum):
    """Where drafts of the next tokens come from: nowhere, or from where a request's last tokens occurred before."""

    off = "off"
    lookup = "lookup"


_MAX_BYTES = 2**63
_MAX_COUNT = 2**31 - 1
_MAX_REPLICAS = 1024
_MAX_TIMEOUT = 1e6

_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


def parse_memory(value: object) -> object:
    """Turns a size such as `"1.5GiB"`, `"512MB"` or `4096` into bytes; anything else is handed back as it is."""
    if not isinstance(value, str):
        return value
    match = _MEMORY.fullmatch(value)
    if match is None:
        return value
    number, prefix, binary = match.groups()
    size = float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " ")
    return int(size) if size < _MAX_BYTES else value


class KVCacheConfig(Settings):
    """Settings of the paged KV cache.

    Attributes:
        page_size: tokens per page.
        kv_cache_memory: bytes for all pages (a number, or text such as `"2GiB"`); None takes what the memory plan
            gives.
        enable_prefix_caching: share full pages between requests that begin with the same tokens.
    """

    page_size: int = Field(default=64, ge=1, le=4096)
    kv_cache_memory: Annotated[int | None, BeforeValidator(parse_memory)] = Field(
        default=None, gt=0, lt=_MAX_BYTES, description='bytes above 0, as a number or as text such as "2GiB", or None'
    )
    enable_prefix_caching: bool = True


def _as_paths(value: object) -> object:
    if isinstance(value, str | Path):
        return (str(value),)
    if isinstance(value, list | tuple):
        return tuple(str(path) if isinstance(path, Path) else path for path in value)
    return value


class LoRAConfig(Settings):
    """Settings of LoRA adapters, for a model that may use any.

    Attributes:
        lora_paths: the adapters to load at once: folders in PEFT's format or Hub ids, each with `name=` before it or
            else its own name.
        max_num_loras: how many of the loaded adapters can be used at the same time; None for one per path.
        max_lora_rank: the greatest rank that an adapter may have; None for that of the adapters in `lora_paths`.
        lora_experts: whether adapters may change the experts of a mixture, for which there is room then, and no kernel
            that computes all experts at once; None where an adapter in `lora_paths` does.
    """

    lora_paths: Annotated[tuple[str, ...], BeforeValidator(_as_paths)] = Field(
        default=(), description="a folder or a Hub id, or a list of them, each with `name=` before it or without"
    )
    max_num_loras: int | None = Field(default=None, ge=1, le=_MAX_COUNT)
    max_lora_rank: int | None = Field(default=None, ge=1, le=_MAX_COUNT)
    lora_experts: bool | None = None


def _as_cache_folder(value: object) -> object:
    """Returns the folder that a setting means: True is the one where programs of a user keep such files."""
    if value is True:
        base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
        value = (Path(base) if base else Path("~/.cache")) / "pipezoo" / "weights"
    if isinstance(value, str | Path) and str(value):
        if "\0" in str(value):
            raise ValueError("no path has a character of number 0")
        return os.path.expanduser(value)
    return None if value is False else value


class RunConfig(Settings):
    """How a model's steps are run.

    Attributes:
        max_length: most tokens of one request, prompt and answer together; None takes the model's own maximum,
            or what the KV cache holds where that is less.
        max_batch_size: most requests that are worked on at the same time; the others wait.
        max_batch_tokens: most tokens that go through the model in one step; longer prompts are fed in chunks.
        attention: the attention backend.
        linear: how linear layers are computed.
        speculative: where drafts come from that a step verifies, so that it may yield several tokens of a request. The
            answers are the same.
        enforce_eager: run every step through Python, instead of recording and replaying them.
        data_parallel_degree: how many replicas of the model answer requests side by side. The other settings hold for
            each of them.
        rank_timeout: seconds after which a rank of several that shows no sign of life is given up. A long step is none.
        load_cache: the folder in which packed weights are kept from one start to the next; None keeps none.
        load_cache_size: most bytes of that folder; of several ranks each may keep its share.
    """

    max_length: int | None = Field(default=None, ge=2, le=_MAX_COUNT)
    max_batch_size: int = Field(default=64, ge=1, le=_MAX_COUNT)
    max_batch_tokens: int = Field(default=1024, ge=1, le=_MAX_COUNT)
    attention: AttentionName = AttentionName.auto
    linear: LinearName = LinearName.auto
    speculative: SpeculativeName = SpeculativeName.off
    enforce_eager: bool = False
    data_parallel_degree: int = Field(default=1, ge=1, le=_MAX_REPLICAS)
    rank_timeout: float = Field(default=60.0, ge=1, le=_MAX_TIMEOUT)
    load_cache: Annotated[str | None, BeforeValidator(_as_cache_folder)] = Field(
        default=None, min_length=1, description="True, a folder, or None"
    )
    load_cache_size: Annotated[int, BeforeValidator(parse_memory)] = Field(
        default=32 << 30, gt=0, lt=_MAX_BYTES, description='bytes above 0, as a number or as text such as "32GiB"'
    )


class PipelineConfig(RunConfig):
    """Everything that decides how a model is run.

    Attributes:
        model_path: what the user asked for, for messages and as the model's identity in the prefix cache.
        plugin: the plugin that serves the model, and its version.
        weight_paths: the weight files, all parts of a model that is split.
        huggingface_config: what the model is, a transformers `PretrainedConfig`; None where nobody needs to know.
        device: a torch device, e.g. `"cpu"` or `"cuda:0"`.
        encoding: the precision to run in.
        stored_types: with the encoding `packed`, the types of tensors that a file has quantized (`StoredType`), by
            their names in the module; else empty.
        tensor_parallel_degree: how many devices compute each step together. The memory settings hold for each of them.
        kv_cache: settings of the KV cache.
        lora: settings of LoRA adapters; None for a model without.
    """

    model_path: str
    plugin: str = ""
    weight_paths: tuple[Path, ...] = ()
    huggingface_config: Any = None
    device: str = "cpu"
    encoding: SupportedEncoding = SupportedEncoding.float32
    stored_types: Mapping[str, Any] = Field(default={}, repr=False)
    tensor_parallel_degree: int = Field(default=1, ge=1, le=_MAX_REPLICAS)
    kv_cache: KVCacheConfig = KVCacheConfig()
    lora: LoRAConfig | None = None

    @property
    def allows_native_kernels(self) -> bool:
        """Whether the native kernels may compute all that they can: no backend was asked for, and no adapters."""
        has_native_attention = self.attention in (AttentionName.auto, AttentionName.native)
        return has_native_attention and self.linear in (LinearName.auto, LinearName.native) and self.lora is None

    @property
    def fuses_layers(self) -> bool:
        """Whether what follows a linear layer may become a part of it, which no adapter can change alone then."""
        return self.lora is None

    @property
    def fuses_experts(self) -> bool:
        """Likewise for the layers in a mixture's experts."""
        return self.lora is None or not self.lora.lora_experts
