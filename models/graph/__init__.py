"""Any transformer as a graph of PyTorch's operators: what its sizes are made of, which of them are heads and neurons, and how
they are cut. No architecture is named here."""
