"""BLOOM, Falcon, GPT-2, GPT-J, GPT-NeoX and OPT for pipezoo.

The registry finds `pipezoo_gpt.plugin`; nothing else needs importing.
"""

__all__: list[str] = []
