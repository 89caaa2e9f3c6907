"""What a step of attention keeps is in the estimate."""

import pytest
import torch

from pipezoo_core.attention import AttentionSpec, PagedAttention
from pipezoo_core.attention.paged_plan import plan_pages
from pipezoo_core.kv_cache.inputs import RaggedBatch

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
