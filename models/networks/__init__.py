"""The `Network` classes: the object through which the rest of the project uses a model."""
