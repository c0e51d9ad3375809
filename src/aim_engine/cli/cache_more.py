"""The commands of `aim-engine cache` for nodes, schedules and room."""
