"""How does it run? Reads a running engine's metrics and says what they mean."""
