"""A model of transformers, saved, and the fallback's model over the same weights."""

import torch
from fallback.tiny_configs import VOCAB, tiny_config
from tiny_models import load_model, logits_of, randomize

from pipezoo_core.context import TextContext
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_transformers.config import read_huggingface_config
from pipezoo_transformers.interface import register
from pipezoo_transformers.model import TransformersPipelineModel
from pipezoo_transformers.outline import class_of
from pipezoo_transformers.weight_adapter import adapt_safetensors

PROMPTS = [[5, 9, 2, 7, 7, 1], [(11 * i) % VOCAB for i in range(37)], [3], [(7 * i) % VOCAB for i in range(53)]]


def make_reference(model_type, **changes):
    """Returns transformers' own model of random numbers, with its own attention."""
    config = tiny_config(model_type, **changes)
    text = read_huggingface_config(config.to_dict())
    text._attn_implementation = "eager"
    torch.manual_seed(0)
    return randomize(class_of(text)(text)).float()


def load_served(reference, folder, **settings):
    register()
    reference.save_pretrained(folder)
    config = read_huggingface_config(reference.config.to_dict())
    return load_model(TransformersPipelineModel, folder, config, adapt_safetensors, **settings)


def assert_equal_logits(reference, model, chunk=None, prompts=PROMPTS, within=1e-3):
    for prompt, logits in zip(prompts, logits_of(model, prompts, chunk), strict=True):
        with torch.no_grad():
            expected = reference(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
        assert torch.isfinite(expected).all()
        difference = (logits - expected).abs().max()
        assert difference < within * max(1, expected.abs().max()), difference


def assert_equal_tokens(reference, model, num_tokens=6):
    """Goes on from a prompt greedily; then does so from a longer one, whose first tokens are in the cache by then."""
    first = [(13 * i + 5) % VOCAB for i in range(30)]
    for prompt, is_cached in ((first, False), ([*first, 8, 3, 9], True)):
        context = TextContext(
            request_id=str(is_cached),
            prompt_tokens=prompt,
            max_length=10**6,
            sampling_params=SamplingParams(max_new_tokens=num_tokens),
        )
        model.kv_manager.external_claim(context)
        assert (context.cache_length > 0) == is_cached
        while not context.status.is_done:
            context.set_chunk(context.num_pending)
            assert model.kv_manager.maybe_reserve(context)
            logits = model.execute(model.prepare_initial_token_inputs([context], model.kv_manager.fetch([context])))
            context.advance(int(logits.next_token_logits[0].argmax()))
            model.kv_manager.step([context])
        model.kv_manager.release(context.request_id)
        assert context.generated_tokens == greedy(reference, prompt, num_tokens)
    model.kv_manager.reset_prefix_cache()


def greedy(reference, prompt, num_tokens):
    tokens = list(prompt)
    for _ in range(num_tokens):
        with torch.no_grad():
            logits = reference(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]
