"""Who asked and what became of it: REST, jobs, storage."""
