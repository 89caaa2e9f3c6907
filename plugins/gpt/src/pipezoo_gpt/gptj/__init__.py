"""GPT-J."""

__all__: list[str] = []
