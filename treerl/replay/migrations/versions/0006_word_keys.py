"""Keys over what other keys leave out: columns of a problem, text of a solution, all of a verdict."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NEW = (("problem", "columns_key"), ("solution", "text_key"), ("verdict", "row_key"))


def upgrade() -> None:
    for table, name in NEW:
        op.add_column(table, sa.Column(name, sa.LargeBinary(length=16), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("go back by restoring a copy made before the upgrade")
