"""The object that the rest of the project holds in its hands: a network."""
