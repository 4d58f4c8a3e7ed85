"""What the routes work with."""
