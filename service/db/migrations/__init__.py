"""The Alembic migrations of the database, in order."""
