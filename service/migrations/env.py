"""Alembic's entry: migrates on the connection that service/schema.py hands over, inside its transaction."""

from alembic import context

from service.store import Row

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Row.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
