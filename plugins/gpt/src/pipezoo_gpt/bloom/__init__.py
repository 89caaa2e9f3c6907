"""BLOOM."""

__all__: list[str] = []
