"""What `pipezoo doctor` looks at: versions, torch, kernels, the Hub's cache and every plugin."""

__all__: list[str] = []
