"""Which plugins are installed, and which of them serves a model. Imports neither torch nor transformers."""

__all__: list[str] = []
