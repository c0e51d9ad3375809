"""Which recipe? Enumerate, prove, rank, and explain the choice; pure."""
