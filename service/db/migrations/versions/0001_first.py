"""The first tables: models, data sets, jobs, trials."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_uploads("models")
    _create_uploads("datasets")
    _create_jobs()
    op.create_table(
        "trials",
        sa.Column("job_id", sa.String(200), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )


def _create_uploads(table: str) -> None:
    op.create_table(
        table,
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("description", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index(f"ix_{table}_created_at", table, ["created_at"])


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("name", sa.String(200)),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("model_id", sa.String(200), sa.ForeignKey("models.id", ondelete="SET NULL")),
        sa.Column("dataset_id", sa.String(200), sa.ForeignKey("datasets.id", ondelete="SET NULL")),
        sa.Column("parent_job_id", sa.String(200), sa.ForeignKey("jobs.id", ondelete="SET NULL")),
        sa.Column("deliver_trial", sa.Integer),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("request_digest", sa.String(200)),
        sa.Column("first_answer", sa.JSON),
        sa.Column("status", sa.String(200), nullable=False),
        sa.Column("stage", sa.String(200)),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("guarantee", sa.String(200)),
        sa.Column("result", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.String(200)),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("crashed_with_trials", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("cancel_asked_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_jobs_idempotency"),
    )
    op.create_index("ix_jobs_status", "jobs", ["status", "created_at"])
    for column in ("created_at", "model_id", "dataset_id", "parent_job_id"):
        op.create_index(f"ix_jobs_{column}", "jobs", [column])
