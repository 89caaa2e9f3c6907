"""A step that rank 0 sends is the step that the other ranks read."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import load_model, make_llama

from pipezoo_core.context import TextContext
from pipezoo_core.decoder.rank_step import RankStep
from pipezoo_core.distributed.messages import Message, decode, encode
from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_llama.model import LlamaPipelineModel
from pipezoo_llama.weight_adapters import adapt_safetensors

INTEGERS = st.lists(st.integers(-1, 2**40), max_size=9)


@st.composite
def batches(draw):
    """With as many lists of pages in each group as there are requests."""
    size = draw(st.integers(1, 4))
    lengths = (draw(st.lists(st.integers(-1, 2**40), min_size=size, max_size=size)) for _ in range(3))
    pages = st.lists(INTEGERS, min_size=size, max_size=size)
    return RaggedBatch(*lengths, draw(st.lists(pages, min_size=1, max_size=3)))


STEPS = st.builds(RankStep, INTEGERS, INTEGERS, INTEGERS, INTEGERS, batches())


@given(STEPS)
def test_what_is_sent_is_read(step):
    message, lists = decode(encode(Message.step, step.as_lists()))
    assert message is Message.step
    assert RankStep.from_lists(lists) == step


def test_the_step_of_a_batch(tmp_path):
    """Two requests, the second of which is fed a chunk that does not reach its end."""
    make_llama().save_pretrained(tmp_path)
    model = load_model(LlamaPipelineModel, tmp_path, make_llama().config, adapt_safetensors)
    contexts = [
        TextContext(request_id=str(i), prompt_tokens=prompt, max_length=50, sampling_params=SamplingParams())
        for i, prompt in enumerate([[1, 2, 3], list(range(12))])
    ]
    for context, size in zip(contexts, (3, 9), strict=True):
        model.kv_manager.external_claim(context)
        context.set_chunk(size)
        assert model.kv_manager.maybe_reserve(context)
    inputs = model.prepare_initial_token_inputs(contexts, model.kv_manager.fetch(contexts))
    inputs.lora_ids, inputs.lora_ranks = torch.tensor([0, -1]), torch.tensor([4, 0])
    assert RankStep.of(inputs) == RankStep(
        tokens=[1, 2, 3, *range(9)],
        logit_rows=list(range(12)),
        lora_ids=[0, -1],
        lora_ranks=[4, 0],
        batch=RaggedBatch([3, 9], [0, 0], [3, 12], [[[0], [1, 2]]]),
    )
