"""OPT."""

__all__: list[str] = []
