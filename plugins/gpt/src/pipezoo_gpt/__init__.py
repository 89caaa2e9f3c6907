"""BLOOM, Falcon, GPT-2 and OPT for pipezoo. The registry finds `pipezoo_gpt.plugin`; nothing else needs importing."""

__all__: list[str] = []
