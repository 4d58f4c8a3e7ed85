"""The entry point of Alembic.

It runs the migrations on the connection that service/db/migrate.py passes to it, inside the open transaction.
"""

from alembic import context

from service.db.tables import Row

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Row.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
