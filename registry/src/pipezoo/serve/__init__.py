"""`pipezoo serve`: models over HTTP. Nothing else of pipezoo imports it, so that its dependencies are optional."""

__all__: list[str] = []
