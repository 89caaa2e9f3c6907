"""Writes GGUF files of llama-like models as converters do, with the `gguf` package's writer."""

import gguf
import numpy as np
from gguf_blocks import quantized

from pipezoo_core.testing.gguf_metadata import architecture_of, metadata_of
from pipezoo_core.testing.gguf_tensors import converted

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ADDERS = {str: "add_string", bool: "add_bool", int: "add_uint32", float: "add_float32", list: "add_array"}
KEPT = ("ssm_conv1d", "ffn_gate_inp", "norm")  # of what has more than one dimension, in float32
# A byte-level vocabulary: the 256 bytes in their printable form, one merge, and the special tokens.
BYTES = [chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255 else None for b in range(256)]
_FILLERS = iter(range(256, 512))
BYTES = [char or chr(next(_FILLERS)) for char in BYTES]
TOKENS = [*sorted(BYTES), "he", "<|im_start|>", "<|im_end|>"]
END = TOKENS.index("<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def gguf_name(name, names=NAMES):
    if name.startswith("blk."):
        return name
    *module, parameter = name.split(".")
    if not name.startswith("model.layers."):
        return f"{names['.'.join(module)]}.{parameter}"
    _, _, layer, *rest = module
    return f"blk.{layer}.{names['.'.join(rest)]}.{parameter}"


def as_converters_divide(tensors):
    """Transformers has gate and up of all experts in one tensor; files have a tensor for each, of all experts."""
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        if name.endswith("mlp.experts.gate_up_proj"):
            gate, up = np.split(values, 2, axis=1)
            layer = name.split(".")[2]
            yield f"blk.{layer}.ffn_gate_exps.weight", gate
            yield f"blk.{layer}.ffn_up_exps.weight", up
        elif name.endswith("mlp.experts.down_proj"):
            yield f"blk.{name.split('.')[2]}.ffn_down_exps.weight", values
        else:
            yield name, values[0] if name.endswith("mlp.shared_expert_gate.weight") else values


def rotated_by_neighbours(rows, num_heads):
    """The converter's reordering of q and k: the halves of each head become its even and odd rows."""
    return rows.reshape(num_heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_llama_gguf(path, model, quantization=gguf.GGMLQuantizationType.F32, metadata=None, extra_tensors=None):
    """Writes the weights of a transformers LlamaForCausalLM."""
    return write_gguf(path, model, "llama", quantization, metadata, extra_tensors, pre="smollm", permutes=True)


def write_gguf(
    path,
    model,
    architecture,
    quantization=gguf.GGMLQuantizationType.F32,
    metadata=None,
    extra_tensors=None,
    *,
    pre,
    permutes=False,
    names=None,
    norm_offset=0,
    stacked=None,
):
    """Writes the weights of a transformers model; the vocabulary is `TOKENS`.

    Args:
        path: of the file.
        model: of names and sizes like Llama's.
        architecture: what llama.cpp calls it.
        quantization: of its matrices, or what makes it of their names in the file.
        metadata: further entries.
        extra_tensors: further tensors.
        pre: the name of the vocabulary's pre-tokenizer.
        permutes: whether the converter reorders q and k.
        names: of tensors that are called otherwise than Llama's.
        norm_offset: what the converter adds to the weights of norms.
        stacked: the quantization of tensors of three dimensions; None for that of the others.
    """
    config = model.config
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    add_vocabulary(writer, pre)
    writer.add_eos_token_id(END)
    writer.add_chat_template(CHAT_TEMPLATE)
    for key, value in (metadata or {}).items():
        getattr(writer, ADDERS[type(value)])(key, value)
    for name, values in as_converters_divide(model.state_dict()):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if "q_proj" in name and permutes:
            values = rotated_by_neighbours(values, config.num_attention_heads)
        if "k_proj" in name and permutes:
            values = rotated_by_neighbours(values, config.num_key_value_heads)
        if name.endswith("norm.weight"):
            values = values + norm_offset
        stored_as = gguf_name(name, {**NAMES, **(names or {})})
        of_matrix = quantization(stored_as) if callable(quantization) else quantization
        kind = {2: of_matrix, 3: stacked or of_matrix}.get(values.ndim, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(stored_as, quantized(values, kind), raw_dtype=kind)
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer, pre):
    """Adds a byte-level vocabulary of `TOKENS`, whose pre-tokenizer has this name."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 3])
    writer.add_token_merges(["h e"])


def write_converted(reference, folder, quantization=gguf.GGMLQuantizationType.F32, metadata=None, tensors=None, *, pre):
    """Writes a transformers model as `pipezoo_core.testing` says that llama.cpp's converter does; returns the file.

    Args:
        reference: what is written.
        folder: where.
        quantization: of its matrices, or what makes it of their names in the file.
        metadata: entries below the architecture's name, beside or in place of those of the config.
        tensors: likewise; None for one that is left out.
        pre: the name of the vocabulary's pre-tokenizer.
    """
    config, path = reference.config, folder / "m.gguf"
    architecture = architecture_of(config)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**metadata_of(config), **(metadata or {})}.items():
        getattr(writer, ADDERS[type(value)])(f"{architecture}.{key}", value)
    add_vocabulary(writer, pre)
    writer.add_bos_token_id(len(TOKENS) - 2)
    for name, tensor in {**converted_tensors(reference), **(tensors or {})}.items():
        if tensor is not None:
            values, of_matrix = tensor.numpy(), quantization(name) if callable(quantization) else quantization
            is_matrix = values.ndim > 1 and values.shape[-1] > 1 and not any(kept in name for kept in KEPT)
            kind = of_matrix if is_matrix else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, quantized(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted_tensors(reference):
    """Returns the tensors of a transformers model as `write_converted` writes them, by their names in the file."""
    config = reference.config
    stored = {name: tensor for name, tensor in reference.state_dict().items()
              if name != "lm_head.weight" or not config.tie_word_embeddings}  # fmt: skip
    return converted(stored, architecture_of(config), config)


def write_parts(folder, model, whole):
    """Writes a llama in three parts, with the tensors of its whole file; returns the new folder."""
    reader = gguf.GGUFReader(whole)
    names = [tensor.name for tensor in reader.tensors]
    folder.mkdir()
    for number in range(3):
        path = folder / f"m-{number + 1:05}-of-00003.gguf"
        own = dict.fromkeys(names[number::3])
        if number == 0:
            data = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name in own}
            state = model.state_dict
            model.state_dict = dict
            write_llama_gguf(path, model, metadata={"split.no": 0, "split.count": 3}, extra_tensors=data)
            model.state_dict = state
            continue
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        for tensor in reader.tensors:
            if tensor.name in own:
                writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder
