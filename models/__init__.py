"""Networks: their structure, plans, pruning, recovery and export."""
