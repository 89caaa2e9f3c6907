"""GPT-NeoX and Pythia."""

__all__: list[str] = []
