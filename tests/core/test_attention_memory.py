"""What a step of attention keeps is in the estimate."""

import pytest
import torch
from kernels_here import needs_kernels

from pipezoo_core.attention import AttentionSpec, NativeAttention, PagedAttention
from pipezoo_core.attention.paged_plan import plan_pages
from pipezoo_core.kv_cache.inputs import RaggedBatch
from pipezoo_core.native import NativeKernels

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE, LENGTH, CHUNK = 4, 2, 8, 32, 256, 64


def bytes_of_biases(spec, num_prompts):
    """Of prompts of 64 tokens with a past of 192 each."""
    pages = [list(range(8 * i, 8 * i + 8)) for i in range(num_prompts)]
    lengths = [CHUNK] * num_prompts, [LENGTH - CHUNK] * num_prompts
    batch = RaggedBatch(*lengths, [1] * num_prompts, [pages])
    prefills = plan_pages(spec, batch, PAGE_SIZE, torch.device("cpu"), 0).prefills
    return sum(prefill.bias.nbytes for prefill in prefills)


@pytest.mark.parametrize("settings", [{}, {"sliding_window": 250}, {"alibi_slopes": (0.5, 0.25, 0.125, 0.0625)}])
def test_prompts_with_a_past_keep_a_bias_each(settings):
    spec = AttentionSpec(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, scale=0.3, **settings)
    memory = PagedAttention(spec).working_memory
    biases = bytes_of_biases(spec, 8) - bytes_of_biases(spec, 4)
    rotated = 4 * CHUNK * (HEADS + KV_HEADS) * HEAD_DIM * 4
    assert biases >= 4 * CHUNK * (LENGTH - PAGE_SIZE) * 4
    assert memory(8 * CHUNK, LENGTH, 4) - memory(4 * CHUNK, LENGTH, 4) >= biases + rotated


KERNELS = NativeKernels(torch.device("cpu"), torch.bfloat16)
LATENT = {"num_heads": 128, "num_kv_heads": 1, "head_dim": 576, "value_dim": 512, "values_in_keys": True}


def bytes_of_pieces(attention, lengths, page_size):
    pages = [[0] * -(-length // page_size) for length in lengths]
    batch = RaggedBatch([1] * len(lengths), [length - 1 for length in lengths], [1] * len(lengths), [pages])
    _, partials, _ = attention.plan(batch, page_size, torch.device("cpu"), 0).arrays
    return partials.nbytes


@needs_kernels
@pytest.mark.parametrize("page_size", [32, 96, 512])
@pytest.mark.parametrize("settings", [{}, LATENT, *({name: size} for name in ("sliding_window", "chunk")
                                                    for size in (100, 600, 20_000))])  # fmt: skip
def test_pieces_of_decodes_have_a_result_each(settings, page_size):
    """What is planned is what the length takes that takes most; with a window or chunks it need not be the longest."""
    sizes = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": 64} | settings
    attention = NativeAttention(AttentionSpec(scale=0.3, **sizes), KERNELS, page_size)
    found = {length: bytes_of_pieces(attention, [length], page_size) for length in range(1, 42_000, 64)}
    for max_length in (1, 257, 1000, 8192, 8193, 24_576, 24_577, 41_985):
        found[max_length] = bytes_of_pieces(attention, [max_length], page_size)
        most = max(size for length, size in found.items() if length <= max_length)
        assert attention.planned_memory(1, max_length) == most
        assert attention.planned_memory(4, max_length) == 4 * most
    assert bytes_of_pieces(attention, [41_985] * 4, page_size) == 4 * found[41_985]


@needs_kernels
@pytest.mark.parametrize(("length", "num_pieces"), [(2**13, 32), (2**14, 48), (2**15, 72), (2**20, 225)])
def test_pieces_grow_with_the_logarithm_of_the_length(length, num_pieces):
    """Of 32 requests of DeepSeek-V3 of 16k, their results are 404 MB."""
    attention = NativeAttention(AttentionSpec(scale=0.1, **LATENT), KERNELS, 64)
    found = bytes_of_pieces(attention, [length] * 32, 64)
    assert found == attention.planned_memory(32, length) == 32 * num_pieces * 128 * 514 * 4


@needs_kernels
@pytest.mark.parametrize(("settings", "num_pieces"), [({"sliding_window": 20_000}, 80), ({"chunk": 20_000}, 79)])
def test_pieces_of_a_window_do_not_become_longer(settings, num_pieces):
    """20,000 keys are 78.1 times 256. A window begins and ends anywhere in a piece, a chunk at multiples of 32 keys."""
    sizes = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": 64}
    attention = NativeAttention(AttentionSpec(scale=0.3, **sizes, **settings), KERNELS, 32)
    assert attention.planned_memory(1, 2**20) == num_pieces * HEADS * 66 * 4
