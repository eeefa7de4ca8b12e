"""What a run is for: one file a task, found by its name."""
