"""The endpoints."""

__all__: list[str] = []
