"""The first schema: facts, provenance, trees."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "meta",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("hash_scheme", sa.String(length=64), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_meta_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_meta")),
    )
    op.create_table(
        "policy",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("version", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy")),
        sa.UniqueConstraint("key", name=op.f("uq_policy_key")),
    )
    op.create_table(
        "problem",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("truth", sa.Text(), nullable=False),
        sa.Column("columns", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_problem")),
        sa.UniqueConstraint("key", name=op.f("uq_problem_key")),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("git_commit", sa.String(length=64), nullable=True),
        sa.Column("created_us", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
        sa.UniqueConstraint("name", name=op.f("uq_run_name")),
    )
    op.create_table(
        "sampler",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("params", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sampler")),
        sa.UniqueConstraint("key", name=op.f("uq_sampler_key")),
    )
    op.create_table(
        "verifier",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verifier")),
        sa.UniqueConstraint("key", name=op.f("uq_verifier_key")),
    )
    op.create_table(
        "prompt",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("problem_id", BIG, nullable=False),
        sa.Column("tokenizer", sa.Text(), nullable=False),
        sa.Column("n_tokens", BIG, nullable=False),
        sa.Column("tokens", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "n_tokens > 0 AND length(tokens) = 4 * n_tokens", name=op.f("ck_prompt_tokens")
        ),
        sa.ForeignKeyConstraint(["problem_id"], ["problem.id"], name=op.f("fk_prompt_problem_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt")),
        sa.UniqueConstraint("key", name=op.f("uq_prompt_key")),
    )
    with op.batch_alter_table("prompt", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_prompt_problem_id"), ["problem_id"], unique=False)

    op.create_table(
        "node",
        sa.Column("id", BIG, nullable=False),
        sa.Column("path_key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("start", BIG, nullable=False),
        sa.Column("prompt_id", BIG, nullable=False),
        sa.Column("n_tokens", BIG, nullable=False),
        sa.Column("tokens", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "n_tokens > 0 AND length(tokens) = 4 * n_tokens", name=op.f("ck_node_tokens")
        ),
        sa.CheckConstraint("start >= 0", name=op.f("ck_node_start")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_node_prompt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node")),
        sa.UniqueConstraint("path_key", "start", name=op.f("uq_node_path_key_start")),
    )
    with op.batch_alter_table("node", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_node_prompt_id"), ["prompt_id"], unique=False)

    op.create_table(
        "solution",
        sa.Column("id", BIG, nullable=False),
        sa.Column("path_key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("prompt_id", BIG, nullable=False),
        sa.Column("n_tokens", BIG, nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_solution_prompt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_solution")),
        sa.UniqueConstraint("path_key", name=op.f("uq_solution_path_key")),
    )
    with op.batch_alter_table("solution", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_solution_prompt_id"), ["prompt_id"], unique=False)

    op.create_table(
        "tree",
        sa.Column("id", BIG, nullable=False),
        sa.Column("run_id", sa.String(length=26), nullable=False),
        sa.Column("problem_id", BIG, nullable=False),
        sa.Column("prompt_id", BIG, nullable=True),
        sa.Column("step", BIG, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("seed", BIG, nullable=False),
        sa.Column("max_completion_length", BIG, nullable=False),
        sa.Column("meta", sa.Text(), nullable=False),
        sa.Column("content_key", sa.LargeBinary(length=16), nullable=True),
        sa.Column("n_nodes", BIG, nullable=False),
        sa.Column("n_leaves", BIG, nullable=False),
        sa.Column("n_right", BIG, nullable=False),
        sa.Column("n_generated", BIG, nullable=False),
        sa.Column("n_cached", BIG, nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_until_us", sa.BigInteger(), nullable=True),
        sa.Column("attempts", BIG, nullable=False),
        sa.Column("created_us", BIG, nullable=False),
        sa.CheckConstraint(
            "(state = 'running') = (lease_until_us IS NOT NULL)", name=op.f("ck_tree_lease")
        ),
        sa.CheckConstraint("state <> 'done' OR prompt_id IS NOT NULL", name=op.f("ck_tree_done")),
        sa.CheckConstraint("state IN ('queued', 'running', 'done')", name=op.f("ck_tree_state")),
        sa.ForeignKeyConstraint(["problem_id"], ["problem.id"], name=op.f("fk_tree_problem_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_tree_prompt_id")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_tree_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tree")),
        sa.UniqueConstraint(
            "run_id",
            "step",
            "problem_id",
            "number",
            name=op.f("uq_tree_run_id_step_problem_id_number"),
        ),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("tree", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tree_problem_id"), ["problem_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_tree_prompt_id"), ["prompt_id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_tree_run_id_state_step"), ["run_id", "state", "step"], unique=False
        )

    op.create_table(
        "draw",
        sa.Column("id", BIG, nullable=False),
        sa.Column("tree_id", BIG, nullable=False),
        sa.Column("row", BIG, nullable=False),
        sa.Column("node_id", BIG, nullable=False),
        sa.Column("solution_id", BIG, nullable=True),
        sa.Column("policy_id", BIG, nullable=True),
        sa.Column("sampler_id", BIG, nullable=True),
        sa.Column("parent", BIG, nullable=False),
        sa.Column("offset", BIG, nullable=False),
        sa.Column("k", BIG, nullable=False),
        sa.Column("seed", BIG, nullable=False),
        sa.Column("finish", sa.String(length=8), nullable=False),
        sa.Column("policy_version", BIG, nullable=False),
        sa.Column("source", BIG, nullable=False),
        sa.Column("logprobs", sa.LargeBinary(), nullable=False),
        sa.Column("entropies", sa.LargeBinary(), nullable=False),
        sa.Column("versions", sa.LargeBinary(), nullable=True),
        sa.Column("mask", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(
            "finish IN ('open', 'stop', 'cut', 'length')", name=op.f("ck_draw_finish")
        ),
        sa.CheckConstraint("length(logprobs) = length(entropies)", name=op.f("ck_draw_arrays")),
        sa.CheckConstraint("source > 0 OR policy_id IS NOT NULL", name=op.f("ck_draw_policy")),
        sa.CheckConstraint("source >= 0", name=op.f("ck_draw_source")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_draw_node_id")),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name=op.f("fk_draw_policy_id")),
        sa.ForeignKeyConstraint(["sampler_id"], ["sampler.id"], name=op.f("fk_draw_sampler_id")),
        sa.ForeignKeyConstraint(["solution_id"], ["solution.id"], name=op.f("fk_draw_solution_id")),
        sa.ForeignKeyConstraint(
            ["tree_id"], ["tree.id"], name=op.f("fk_draw_tree_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_draw")),
        sa.UniqueConstraint("tree_id", "row", name=op.f("uq_draw_tree_id_row")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("draw", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_draw_node_id"), ["node_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_draw_policy_id"), ["policy_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_draw_solution_id"), ["solution_id"], unique=False)
        batch_op.create_index(
            "ix_draw_source",
            ["source"],
            unique=False,
            sqlite_where=sa.text("source > 0"),
            postgresql_where=sa.text("source > 0"),
        )

    op.create_table(
        "verdict",
        sa.Column("solution_id", BIG, nullable=False),
        sa.Column("verifier_id", BIG, nullable=False),
        sa.Column("outcome", sa.String(length=8), nullable=False),
        sa.Column("reward", sa.Double(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("position", BIG, nullable=False),
        sa.CheckConstraint(
            "(outcome = 'scored') = (reward IS NOT NULL)", name=op.f("ck_verdict_scored")
        ),
        sa.CheckConstraint(
            "outcome IN ('scored', 'skipped', 'timeout', 'error')", name=op.f("ck_verdict_outcome")
        ),
        sa.CheckConstraint("reward BETWEEN -1e6 AND 1e6", name=op.f("ck_verdict_reward")),
        sa.ForeignKeyConstraint(
            ["solution_id"],
            ["solution.id"],
            name=op.f("fk_verdict_solution_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["verifier_id"], ["verifier.id"], name=op.f("fk_verdict_verifier_id")
        ),
        sa.PrimaryKeyConstraint("solution_id", "verifier_id", name=op.f("pk_verdict")),
    )
    with op.batch_alter_table("verdict", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_verdict_verifier_id_reward"), ["verifier_id", "reward"], unique=False
        )

    op.create_table(
        "visit",
        sa.Column("tree_id", BIG, nullable=False),
        sa.Column("row", BIG, nullable=False),
        sa.Column("parent_row", BIG, nullable=False),
        sa.Column("draw_row", BIG, nullable=False),
        sa.Column("start", BIG, nullable=False),
        sa.Column("stop", BIG, nullable=False),
        sa.Column("offset", BIG, nullable=False),
        sa.Column("visits", BIG, nullable=False),
        sa.Column("value_sum", sa.Double(), nullable=False),
        sa.Column("prior", sa.Double(), nullable=True),
        sa.Column("finish", sa.String(length=8), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("chosen_by_token", sa.Boolean(), nullable=False),
        sa.Column("selected", sa.Boolean(), nullable=False),
        sa.Column("reward", sa.Double(), nullable=True),
        sa.Column("advantage", sa.Double(), nullable=True),
        sa.Column("outcome", sa.String(length=8), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "finish IN ('open', 'stop', 'cut', 'length')", name=op.f("ck_visit_finish")
        ),
        sa.CheckConstraint("(outcome IS NULL) = (seconds IS NULL)", name=op.f("ck_visit_judged")),
        sa.CheckConstraint("reward BETWEEN -1e6 AND 1e6", name=op.f("ck_visit_reward")),
        sa.ForeignKeyConstraint(
            ["tree_id"], ["tree.id"], name=op.f("fk_visit_tree_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tree_id", "row", name=op.f("pk_visit")),
    )


def downgrade() -> None:
    raise NotImplementedError("go back by restoring a copy made before the upgrade")
