"""Pools of a run's own rows, their use, and the phases of its curriculum."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "pool",
        sa.Column("id", BIG, nullable=False),
        sa.Column("run_id", sa.String(length=26), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("sampler", sa.String(length=16), nullable=False),
        sa.Column("remover", sa.String(length=16), nullable=False),
        sa.Column("max_size", BIG, nullable=False),
        sa.Column("max_times_sampled", BIG, nullable=True),
        sa.Column("max_age", BIG, nullable=True),
        sa.CheckConstraint("max_age >= 0", name=op.f("ck_pool_max_age")),
        sa.CheckConstraint("max_size > 0", name=op.f("ck_pool_max_size")),
        sa.CheckConstraint("max_times_sampled > 0", name=op.f("ck_pool_max_times_sampled")),
        sa.CheckConstraint("remover IN ('oldest', 'lowest')", name=op.f("ck_pool_remover")),
        sa.CheckConstraint(
            "sampler IN ('uniform', 'prioritised', 'oldest', 'newest')",
            name=op.f("ck_pool_sampler"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_pool_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pool")),
        sa.UniqueConstraint("run_id", "name", name=op.f("uq_pool_run_id_name")),
    )
    op.create_table(
        "item",
        sa.Column("id", BIG, nullable=False),
        sa.Column("pool_id", BIG, nullable=False),
        sa.Column("draw_id", BIG, nullable=False),
        sa.Column("priority", sa.Double(), nullable=False),
        sa.Column("step", BIG, nullable=False),
        sa.CheckConstraint("priority >= 0 AND priority <= 1e6", name=op.f("ck_item_priority")),
        sa.ForeignKeyConstraint(
            ["draw_id"], ["draw.id"], name=op.f("fk_item_draw_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["pool_id"], ["pool.id"], name=op.f("fk_item_pool_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_item")),
        sa.UniqueConstraint("pool_id", "draw_id", name=op.f("uq_item_pool_id_draw_id")),
    )
    with op.batch_alter_table("item", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_item_draw_id"), ["draw_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_item_pool_id_step"), ["pool_id", "step"], unique=False)

    op.create_table(
        "item_use",
        sa.Column("item_id", BIG, nullable=False),
        sa.Column("step", BIG, nullable=False),
        sa.Column("times", BIG, nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.CheckConstraint(
            "probability > 0 AND probability <= 1", name=op.f("ck_item_use_probability")
        ),
        sa.CheckConstraint("times > 0", name=op.f("ck_item_use_times")),
        sa.ForeignKeyConstraint(
            ["item_id"], ["item.id"], name=op.f("fk_item_use_item_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("item_id", "step", name=op.f("pk_item_use")),
    )
    op.create_table(
        "phase",
        sa.Column("run_id", sa.String(length=26), nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("step", BIG, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.CheckConstraint("number >= 0 AND step >= 0", name=op.f("ck_phase_place")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_phase_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_phase")),
    )


def downgrade() -> None:
    raise NotImplementedError("go back by restoring a copy made before the upgrade")
