"""A key over the statistics and verdicts of a tree, which its content key leaves out."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tree", sa.Column("state_key", sa.LargeBinary(length=16), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("go back by restoring a copy made before the upgrade")
