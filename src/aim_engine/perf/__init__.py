"""How big is it, and how fast? Memory per device and time per step of one recipe on one device; pure arithmetic."""
