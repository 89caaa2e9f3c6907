"""What a client may send, by name and type."""

__all__: list[str] = []
