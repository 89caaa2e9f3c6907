"""Every causal language model of transformers: equal to its own class, or refused with its reason.

The quick tests take a sample of the types; the log of a test run names its seed.
"""

import random

import pytest
from fallback.refused import REFUSED, refused_config
from fallback.served import assert_equal_logits, assert_equal_tokens, load_served, make_reference
from fallback.tiny_configs import TYPES

from pipezoo_transformers.interface import register
from pipezoo_transformers.refusals import why_not

SEED = 18
NUM_SAMPLED = 12
SERVED = [name for name in TYPES if name not in REFUSED]
SAMPLED = set(random.Random(SEED).sample(SERVED, NUM_SAMPLED))


def marked(names):
    return [name if name in SAMPLED else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("model_type", marked(SERVED))
def test_equals_transformers(model_type, tmp_path):
    """All at once, in chunks, and after a prefix that another request left."""
    reference = make_reference(model_type)
    model = load_served(reference, tmp_path)
    assert_equal_logits(reference, model)
    assert_equal_logits(reference, model, chunk=7)
    assert_equal_tokens(reference, model)


def test_how_many_are_served():
    assert len(TYPES) == 189
    assert len(SERVED) == 102
    assert REFUSED.keys() <= set(TYPES)


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused(model_type):
    register()
    assert REFUSED[model_type] in why_not(refused_config(model_type))
