"""Qwen3-Next and Qwen3.5, most of whose layers keep a state instead of keys and values."""

__all__: list[str] = []
