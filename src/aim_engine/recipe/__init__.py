"""What is known to work? Serving configurations with their provenance, and the rules of thumb for when nothing is."""
