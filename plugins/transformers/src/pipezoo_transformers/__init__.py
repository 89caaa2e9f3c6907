"""Any decoder that transformers knows, by transformers' own class, on the pages and the scheduler of pipezoo."""

__all__: list[str] = []
