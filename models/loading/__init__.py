"""From an uploaded folder to a network. Nothing else in `models` imports it."""
