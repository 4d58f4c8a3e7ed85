"""What a network is: its structure, its plan, pruning, recovery and export."""
