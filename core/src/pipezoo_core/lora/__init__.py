"""LoRA adapters: read from PEFT folders, kept in slots, added to the products of linear layers request by request."""

from pipezoo_core.lora.adapted_module import AdaptedModule, lora_memory
from pipezoo_core.lora.adapter import LoRAModel, LoRAWeights, open_adapter
from pipezoo_core.lora.layers import (
    NO_LORA,
    LoRABatch,
    LoRAGroup,
    LoRALayer,
    LoRATarget,
    adaptable_layers,
    group_rows,
    numbers_while_added,
)
from pipezoo_core.lora.manager import LoadedAdapter, LoRAManager, resolve_lora_config
from pipezoo_core.lora.slots import LoRASlots

__all__ = [
    "NO_LORA",
    "AdaptedModule",
    "LoRABatch",
    "LoRAGroup",
    "LoRALayer",
    "LoRAManager",
    "LoRAModel",
    "LoRASlots",
    "LoRATarget",
    "LoRAWeights",
    "LoadedAdapter",
    "adaptable_layers",
    "group_rows",
    "lora_memory",
    "numbers_while_added",
    "open_adapter",
    "resolve_lora_config",
]
