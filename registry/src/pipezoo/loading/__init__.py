"""From a model's name to a running pipeline."""

__all__: list[str] = []
