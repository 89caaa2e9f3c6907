"""The `pipezoo` command."""

__all__: list[str] = []
