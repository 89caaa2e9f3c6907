"""Falcon."""

__all__: list[str] = []
