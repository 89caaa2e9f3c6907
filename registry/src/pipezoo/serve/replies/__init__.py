"""What becomes of an output in the words of a client."""

__all__: list[str] = []
