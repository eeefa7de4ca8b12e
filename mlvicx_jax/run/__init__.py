"""A run: its folder, what it logs, saves and reports, and how it is read back."""
