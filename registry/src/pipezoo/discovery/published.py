"""The plugins that pipezoo publishes. A message tells to install these and no others: a name may be anybody's."""

from __future__ import annotations

from pipezoo.discovery.setting import VARIABLE

__all__ = ["ANY", "FALLBACK", "PUBLISHED", "how_to_install", "how_to_mend"]

PUBLISHED = {
    "bloom": "pipezoo-gpt",
    "deepseek_v2": "pipezoo-deepseek",
    "deepseek_v3": "pipezoo-deepseek",
    "falcon": "pipezoo-gpt",
    "gemma": "pipezoo-gemma",
    "gemma2": "pipezoo-gemma",
    "gemma3": "pipezoo-gemma",
    "gemma3_text": "pipezoo-gemma",
    "gpt-oss": "pipezoo-gpt-oss",
    "gpt2": "pipezoo-gpt",
    "gpt_neox": "pipezoo-gpt",
    "gpt_oss": "pipezoo-gpt-oss",
    "gptj": "pipezoo-gpt",
    "granitemoehybrid": "pipezoo-granite",
    "lfm2": "pipezoo-lfm2",
    "lfm2_moe": "pipezoo-lfm2",
    "llama": "pipezoo-llama",
    "ministral3": "pipezoo-mistral",
    "mistral": "pipezoo-mistral",
    "mistral3": "pipezoo-mistral",
    "mixtral": "pipezoo-mistral",
    "mpt": "pipezoo-replit",
    "nemotron_h": "pipezoo-nemotron",
    "olmo": "pipezoo-olmo",
    "olmo2": "pipezoo-olmo",
    "olmo3": "pipezoo-olmo",
    "opt": "pipezoo-gpt",
    "phi": "pipezoo-phi",
    "phi3": "pipezoo-phi",
    "qwen2": "pipezoo-qwen",
    "qwen2_moe": "pipezoo-qwen",
    "qwen3": "pipezoo-qwen",
    "qwen3_5": "pipezoo-qwen",
    "qwen3_5_moe": "pipezoo-qwen",
    "qwen3_5_moe_text": "pipezoo-qwen",
    "qwen3_5_text": "pipezoo-qwen",
    "qwen3_moe": "pipezoo-qwen",
    "qwen3_next": "pipezoo-qwen",
    "replit_lm": "pipezoo-replit",
}
"""The distribution that serves a model type."""

ANY = "*"
"""What a plugin claims that takes any model type that no other one serves."""

FALLBACK = "pipezoo-transformers"
"""The distribution that claims it."""


def how_to_install(distribution: str) -> str:
    """Returns the cure of a message about a plugin that is not installed."""
    if distribution in {*PUBLISHED.values(), FALLBACK}:
        return f"Try: pip install {distribution}"
    return "Check the spelling, and install it from where its author says."


def how_to_mend(distribution: str) -> str:
    """Returns the cure of a message about an installed plugin that does not work, or not with this pipezoo-core."""
    if distribution in {*PUBLISHED.values(), FALLBACK}:
        return f"Try: pip install --upgrade --force-reinstall {distribution} pipezoo"
    return f"Install a release of it that fits pipezoo-core, or go without it: {VARIABLE}=-{distribution}"
