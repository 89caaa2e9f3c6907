"""A model's files: where they are, and what their small parts say."""

__all__: list[str] = []
