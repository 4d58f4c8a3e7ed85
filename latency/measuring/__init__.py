"""Running a file and taking times."""
