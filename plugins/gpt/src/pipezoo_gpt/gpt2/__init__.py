"""GPT-2."""

__all__: list[str] = []
