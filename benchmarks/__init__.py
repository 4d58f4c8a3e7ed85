"""One script for each claim. Each script prints a table and names the machine on which it ran."""
