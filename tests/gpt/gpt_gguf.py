"""Writes GGUF files of pipezoo-gpt's architectures, with llama.cpp's names and a byte-level vocabulary."""

import gguf
import numpy as np
from gguf_files import ADDERS, END, TOKENS

F32 = gguf.GGMLQuantizationType.F32


def write(path, architecture, metadata, tensors, names, quantization=F32, *, pre):
    """Returns the path of a file.

    Args:
        path: of the file.
        architecture: what llama.cpp calls it.
        metadata: entries under the architecture's name.
        tensors: NumPy arrays by transformers' names.
        names: what llama.cpp calls those of a layer, and the others.
        quantization: of matrices.
        pre: the name of the vocabulary's pre-tokenizer.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        getattr(writer, ADDERS[type(value)])(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 3])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(END)
    for name, values in tensors.items():
        kind = quantization if values.ndim > 1 else F32
        packed = gguf.quants.quantize(np.ascontiguousarray(values), kind)
        writer.add_tensor(_name_in_file(name, names), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name_in_file(name, names):
    kind, _, parameter = name.removeprefix("transformer.").rpartition(".")
    if not kind.startswith("h."):
        return f"{names[kind]}.{parameter}"
    _, layer, kind = kind.split(".", 2)
    return f"blk.{layer}.{names[kind]}.{parameter}"
