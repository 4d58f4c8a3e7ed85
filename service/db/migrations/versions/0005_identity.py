"""The identity of the database, and the files that are still to be deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("identity", sa.Column("id", sa.String(), primary_key=True))
    op.create_table("removals", sa.Column("job_id", sa.String(), primary_key=True))
