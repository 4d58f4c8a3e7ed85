"""Everything that takes gradient steps."""
