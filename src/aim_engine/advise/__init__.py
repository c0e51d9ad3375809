"""What would be better? Suggestions from the difference between a plan and what was measured; pure."""
