"""Writes GGUF files of pipezoo-gpt's architectures, with llama.cpp's names and a byte-level vocabulary."""

import gguf
import numpy as np
from gguf_files import ADDERS, CHAT_TEMPLATE, END, add_vocabulary

F32 = gguf.GGMLQuantizationType.F32


def write(path, architecture, metadata, tensors, quantization=F32, *, pre):
    """Returns the path of a file.

    Args:
        path: of the file.
        architecture: what llama.cpp calls it.
        metadata: entries under the architecture's name.
        tensors: NumPy arrays by the file's names.
        quantization: of matrices other than learned positions.
        pre: the name of the vocabulary's pre-tokenizer.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        getattr(writer, ADDERS[type(value)])(f"{architecture}.{key}", value)
    add_vocabulary(writer, pre)
    writer.add_bos_token_id(END)
    writer.add_eos_token_id(END)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, values in tensors.items():
        kind = quantization if values.ndim > 1 and name != "position_embd.weight" else F32
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def named(tensors, names):
    """Returns tensors of transformers' names by the file's.

    Args:
        tensors: NumPy arrays.
        names: what llama.cpp calls those of a layer, and the others.
    """
    return {_name_in_file(name, names): values for name, values in tensors.items()}


def _name_in_file(name, names):
    kind, _, parameter = name.removeprefix("transformer.").rpartition(".")
    if not kind.startswith("h."):
        return f"{names[kind]}.{parameter}"
    _, layer, kind = kind.split(".", 2)
    return f"blk.{layer}.{names[kind]}.{parameter}"
