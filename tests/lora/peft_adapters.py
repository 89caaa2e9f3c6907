"""Adapters with random weights, made and saved by peft, and the model that peft merges them into."""

import copy
import warnings
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model


def save_adapter(base, folder, *, seed=0, **config):
    """Saves an adapter of a transformers model."""
    values = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    with _quietly():
        adapted = get_peft_model(copy.deepcopy(base), LoraConfig(**values))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)


def merged(base, folder):
    """Returns what a transformers model becomes with a saved adapter."""
    with _quietly():
        return PeftModel.from_pretrained(copy.deepcopy(base), folder).merge_and_unload().eval()


@contextmanager
def _quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that are going away
        warnings.filterwarnings(
            "ignore", "The following (rank|alpha)_pattern keys"
        )  # which it writes for experts itself
        yield
