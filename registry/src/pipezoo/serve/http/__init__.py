"""What every request and answer goes through, whatever it asks."""

__all__: list[str] = []
