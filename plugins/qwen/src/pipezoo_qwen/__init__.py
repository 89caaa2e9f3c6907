"""Qwen models for pipezoo. The registry finds `pipezoo_qwen.plugin`; nothing else needs importing."""

__all__: list[str] = []
