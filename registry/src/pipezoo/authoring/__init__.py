"""What writes the package of a new plugin: a copier template, and what fills it in."""

__all__: list[str] = []
