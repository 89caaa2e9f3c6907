"""What a client may send, by name and type."""
