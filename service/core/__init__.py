"""What every other part of the service may import: errors, settings, logs, the data folder, processes, retries, clocks."""
