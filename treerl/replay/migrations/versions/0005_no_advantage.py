"""Without the advantage of a visit: credit is a function of the tree, computed where it is shown."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("visit", "advantage")


def downgrade() -> None:
    raise NotImplementedError("go back by restoring a copy made before the upgrade")
