"""The engine's process, and what the server's process knows of it."""

__all__: list[str] = []
