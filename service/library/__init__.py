"""What users bring: models, data sets, device profiles; and how long it is kept."""
