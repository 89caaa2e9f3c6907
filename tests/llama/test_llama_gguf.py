"""GGUF files of llama models: the same logits as the transformers model they were written from."""

import gguf
import pytest
import torch
from gguf_files import TOKENS, gguf_name, write_llama_gguf
from tiny_models import logits_of, make_llama
from transformers import LlamaConfig

from pipezoo_core.config import KVCacheConfig, PipelineConfig, ReturnLogits, SupportedEncoding
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedCheckpointError, UnsupportedModelError
from pipezoo_core.layers.quantized import QuantizedProduct, dequantize
from pipezoo_core.session import InferenceSession
from pipezoo_core.weights import open_gguf
from pipezoo_llama.config import config_from_gguf
from pipezoo_llama.model import LlamaPipelineModel
from pipezoo_llama.weight_adapters import adapt_gguf

PROMPTS = [[5, 9, 2, 7, 7, 1], list(range(40))]


def make(**changes):
    return make_llama(vocab_size=len(TOKENS), intermediate_size=64, **changes)


def load(path, encoding=SupportedEncoding.float32, **settings):
    file = open_gguf(path)
    config = PipelineConfig(
        model_path=str(path), weight_paths=(path,), kv_cache=KVCacheConfig(page_size=8, memory=2**22), **settings
    )
    session = InferenceSession([torch.device("cpu")])
    return LlamaPipelineModel(
        pipeline_config=config,
        session=session,
        huggingface_config=LlamaConfig.from_dict(config_from_gguf(file)),
        encoding=encoding,
        devices=session.devices,
        kv_cache_config=config.kv_cache,
        weights=file.weights,
        adapter=adapt_gguf,
        return_logits=ReturnLogits.ALL,
    )


def assert_equal_logits(reference, model):
    for prompt, logits in zip(PROMPTS, logits_of(model, PROMPTS), strict=True):
        with torch.no_grad():
            expected = reference(torch.tensor([prompt])).logits[0]
        assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"head_dim": 16},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ],
    ids=["plain", "tied", "multi_head", "head_dim", "bias", "theta"],
)
def test_logits_equal_transformers(changes, tmp_path):
    reference = make(**changes)
    assert_equal_logits(reference, load(write_llama_gguf(tmp_path / "m.gguf", reference)))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_weights_equal_transformers_on_the_dequantized_ones(kind, tmp_path):
    reference, quantization = make(), gguf.GGMLQuantizationType[kind]
    path = write_llama_gguf(tmp_path / "m.gguf", reference, quantization)
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 2:
                packed = gguf.quants.quantize(parameter.numpy(), quantization)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, quantization).copy()))
    assert_equal_logits(reference, load(path))


@pytest.mark.parametrize("linear", ["torch", "auto"])
def test_int8_holds_the_numbers_of_a_q8_0_file(linear, tmp_path):
    """Also those that bfloat16, the precision of the activations, would round."""
    path = write_llama_gguf(tmp_path / "m.gguf", make(tie_word_embeddings=True), gguf.GGMLQuantizationType.Q8_0)
    product = load(path, SupportedEncoding.int8, linear=linear).module.lm_head._product
    numbers = open_gguf(path).weights["token_embd.weight"].load()
    assert not torch.equal(numbers.bfloat16().float(), numbers)
    rows = product.rows(torch.arange(len(numbers)))
    torch.testing.assert_close(rows, numbers.bfloat16(), atol=0, rtol=0)
    if isinstance(product, QuantizedProduct):
        assert torch.equal(dequantize(*product._quantized, torch.float32), numbers)


def test_linear_rope_scaling(tmp_path):
    reference = make(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert_equal_logits(reference, load(write_llama_gguf(tmp_path / "m.gguf", reference, metadata=metadata)))


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def divisors(reference):
    """What llama.cpp's converter stores of Llama 3.1's scaling: unscaled over scaled frequencies."""
    dim = reference.config.head_dim
    plain = 1.0 / 500000.0 ** (torch.arange(0, dim, 2) / dim)
    return (plain / reference.model.rotary_emb.inv_freq).numpy()


def test_llama3_rope_is_recognized_in_its_divisors(tmp_path):
    reference = make(rope_parameters=LLAMA3, head_dim=32)
    path = write_llama_gguf(tmp_path / "m.gguf", reference, extra_tensors={"rope_freqs.weight": divisors(reference)})
    assert_equal_logits(reference, load(path))


def test_other_rope_divisors_are_refused(tmp_path):
    reference = make(rope_parameters=LLAMA3, head_dim=32)
    path = write_llama_gguf(
        tmp_path / "m.gguf", reference, extra_tensors={"rope_freqs.weight": divisors(reference) * 1.5}
    )
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        load(path)


def test_reader_agrees_with_the_gguf_package(tmp_path):
    path = write_llama_gguf(tmp_path / "m.gguf", make(), gguf.GGMLQuantizationType.Q8_0)
    ours, reference = open_gguf(path), gguf.GGUFReader(path)
    for name, field in reference.fields.items():
        if not name.startswith("GGUF."):
            assert ours.metadata[name] == field.contents(), name
    assert set(ours.weights) == {tensor.name for tensor in reference.tensors}
    for tensor in reference.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(ours.weights[tensor.name].load(), torch.from_numpy(expected.copy())), tensor.name


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_truncated_file_is_refused(share, tmp_path):
    path = write_llama_gguf(tmp_path / "m.gguf", make())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptCheckpointError, match=r"m\.gguf is not a whole GGUF file"):
        open_gguf(path)


def test_damaged_headers_are_refused(tmp_path):
    """Each byte of the beginning changed in turn: an error of ours, or a file that still opens."""
    path = write_llama_gguf(tmp_path / "m.gguf", make())
    whole = path.read_bytes()
    refused = 0
    for at in range(200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            open_gguf(path)
        except (CorruptCheckpointError, UnsupportedCheckpointError):
            refused += 1
    assert refused > 20


def test_missing_metadata_is_named(tmp_path):
    file = open_gguf(write_llama_gguf(tmp_path / "m.gguf", make()))
    del file.metadata["llama.block_count"]
    with pytest.raises(CorruptCheckpointError, match=r"llama\.block_count"):
        config_from_gguf(file)


def test_names_of_the_writer_cover_all_weights():
    assert len({gguf_name(name) for name in make().state_dict()}) == len(make().state_dict())
