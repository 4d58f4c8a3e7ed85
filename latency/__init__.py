"""How long a network takes: devices, measurements and predictions."""
