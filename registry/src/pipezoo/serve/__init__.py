"""The server: one process that speaks HTTP, and one that has the pipeline. Needs `pip install 'pipezoo[serve]'`."""

__all__: list[str] = []
