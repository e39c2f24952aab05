"""Without the index of verdicts by verifier, which SQLite preferred to those by prompt and solution."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index(op.f("ix_verdict_verifier_id_reward"), table_name="verdict")


def downgrade() -> None:
    raise NotImplementedError("go back by restoring a copy made before the upgrade")
