"""One script per claim; each prints its table and says what machine it ran on."""
