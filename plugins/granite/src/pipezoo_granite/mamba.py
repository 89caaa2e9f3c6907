"""The sizes of Granite's layers that keep a state."""

from __future__ import annotations

from transformers import PretrainedConfig

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import Mamba2Sizes

__all__ = ["mamba_sizes"]

_NAMES = {
    "num_heads": "mamba_n_heads",
    "head_size": "mamba_d_head",
    "num_groups": "mamba_n_groups",
    "state_size": "mamba_d_state",
    "num_taps": "mamba_d_conv",
    "length_limits": "time_step_limit",
}


def mamba_sizes(config: PretrainedConfig) -> Mamba2Sizes:
    """Reads a `GraniteHuggingFaceConfig`, or transformers' own.

    Raises:
        UnsupportedModelError: a size is not positive or does not fit the others, or the limits are none.
    """
    heads, expand, head_size = config.mamba_n_heads, config.mamba_expand, config.mamba_d_head
    for name, size in (("mamba_n_heads", heads), ("mamba_expand", expand)):
        if not isinstance(size, int) or size < 1:
            raise UnsupportedModelError(
                "a size of the config's Mamba layers is none", found=f"{name} {size!r}", allowed="a size above 0"
            )
    width = expand * config.hidden_size
    if head_size == "auto":
        head_size = width // heads
    if not isinstance(head_size, int) or head_size * heads != width:
        raise UnsupportedModelError(
            "the heads of the config's Mamba layers do not fit their width",
            found=f"mamba_n_heads {heads}, mamba_d_head {head_size!r}, {width} numbers",
            allowed="heads that are the whole width together",
        )
    return Mamba2Sizes(
        num_heads=heads,
        head_size=head_size,
        num_groups=config.mamba_n_groups,
        state_size=config.mamba_d_state,
        num_taps=config.mamba_d_conv,
        conv_bias=bool(config.mamba_conv_bias),
        bias=bool(config.mamba_proj_bias),
        length_limits=_limits(config),
        names=_NAMES,
    )


def _limits(config: PretrainedConfig) -> tuple[float, float]:
    found = config.time_step_limit
    if found is None or len(found) != 2:
        raise UnsupportedModelError(
            "the config's time_step_limit is none",
            found=repr(found),
            allowed="the shortest and the longest step",
        )
    return float(found[0]), float(found[1])
