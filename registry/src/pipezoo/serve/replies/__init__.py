"""What becomes of an output in the words of a client."""
