"""Anyone's own folder of radiographs."""
