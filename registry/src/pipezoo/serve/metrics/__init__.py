"""What Prometheus reads of a server, under the names of vLLM, so that boards and gateways for that work with it."""

__all__: list[str] = []
