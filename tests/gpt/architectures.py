"""What the tests of pipezoo-gpt's architectures share."""

import json

from pipezoo_core.config import WeightsFormat
from pipezoo_gpt.plugin import pipezoo_architectures

ARCHITECTURES = {architecture.model_types[0]: architecture for architecture in pipezoo_architectures()}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
"""Fields of a config: tokens that prompts of tests may hold."""


def saved(reference, folder):
    """Writes a model; returns what `load_model` takes, the config read from its file as the registry does."""
    reference.save_pretrained(folder)
    architecture = ARCHITECTURES[reference.config.model_type]
    config = architecture.huggingface_config(json.loads((folder / "config.json").read_text()))
    return architecture.pipeline_model, folder, config, architecture.weight_adapters[WeightsFormat.safetensors]
