"""Tables of the replay cache (SQLAlchemy Core, no dialect of its own).

Facts (`problem`, `prompt`, `node`, `solution`) are content-addressed: equal content is one row, whoever
wrote it, and rows never change. Provenance (`policy`, `sampler`, `verifier`, `run`, `draw`, `verdict`) says
who made them. `tree` and `visit` are one search's opinion, enough to bring its `Tree` back exactly. `pool`,
`item`, `item_use` and `phase` are what a run keeps for its own later steps: rows carry the step they were
written at, and are never changed, so that a resumed run sees what the unbroken one saw at that step.

Choices: integer ids inside, 16-byte keys across databases; strings with CHECK, no native enums; times in
microseconds since the epoch; JSON as canonical text; token and log-prob arrays as raw little-endian BLOBs;
NULL where a value is absent, NaN and infinity refused.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Known schema revisions, oldest first; the last one is what this code reads and writes."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives only INTEGER PRIMARY KEY the rowid.
_Big = BigInteger().with_variant(Integer, "sqlite")
_MAX_REWARD = "1e6"


class Words(TypeDecorator[str]):
    """Text that a model or a data set wrote; PostgreSQL, which refuses NUL in text, gets it escaped."""

    impl = Text
    cache_ok = True
    _escapes = (("\U0010ffff", "\U0010ffff1"), ("\x00", "\U0010ffff0"))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Escapes what would not pass."""
        if value is None or dialect.name != "postgresql":
            return value
        for plain, escaped in self._escapes:
            value = value.replace(plain, escaped)
        return value

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """The text as it was."""
        if value is None or dialect.name != "postgresql":
            return value
        for plain, escaped in reversed(self._escapes):
            value = value.replace(escaped, plain)
        return value


def _id() -> "Column[Any]":
    return Column("id", _Big, primary_key=True)


def _key(name: str = "key") -> "Column[Any]":
    return Column(name, LargeBinary(16), nullable=False, unique=True)


def _ref(name: str, target: str, *, index: bool = False, **options: Any) -> "Column[Any]":
    options.setdefault("nullable", False)
    ondelete = options.pop("ondelete", None)
    return Column(name, _Big, ForeignKey(target, ondelete=ondelete), index=index, **options)


def _int(name: str, **options: Any) -> "Column[Any]":
    return Column(name, _Big, nullable=False, **options)


_FINISH = "finish IN ('open', 'stop', 'cut', 'length')"

meta = Table(
    "meta",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hash_scheme", String(64), nullable=False),
    Column("created_by", String(64), nullable=False),
    CheckConstraint("id = 1", name="single"),
)

problem = Table(
    "problem",
    metadata,
    _id(),
    _key(),
    Column("kind", Text, nullable=False),
    Column("question", Words, nullable=False),
    Column("truth", Words, nullable=False),
    Column("columns", Text, nullable=False),
    # This key and the two like it are for `check` alone, and absent in rows of schema 0005 and before.
    Column("columns_key", LargeBinary(16)),
)

prompt = Table(
    "prompt",
    metadata,
    _id(),
    _key(),
    _ref("problem_id", "problem.id", index=True),
    Column("tokenizer", Text, nullable=False),
    _int("n_tokens"),
    Column("tokens", LargeBinary, nullable=False),
    CheckConstraint("n_tokens > 0 AND length(tokens) = 4 * n_tokens", name="tokens"),
)

# A span of tokens as it was drawn; `start` counts completion tokens before it.
node = Table(
    "node",
    metadata,
    _id(),
    Column("path_key", LargeBinary(16), nullable=False),
    _int("start"),
    _ref("prompt_id", "prompt.id", index=True),
    _int("n_tokens"),
    Column("tokens", LargeBinary, nullable=False),
    UniqueConstraint("path_key", "start"),
    CheckConstraint("start >= 0", name="start"),
    CheckConstraint("n_tokens > 0 AND length(tokens) = 4 * n_tokens", name="tokens"),
)

# An ended path, by the `path_key` of every node that ends there.
solution = Table(
    "solution",
    metadata,
    _id(),
    _key("path_key"),
    _ref("prompt_id", "prompt.id", index=True),
    _int("n_tokens"),
    Column("text", Words),
    Column("text_key", LargeBinary(16)),
)

policy = Table(
    "policy",
    metadata,
    _id(),
    _key(),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    _int("version"),
)

sampler = Table("sampler", metadata, _id(), _key(), Column("params", Text, nullable=False))

verifier = Table(
    "verifier",
    metadata,
    _id(),
    _key(),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("config", Text, nullable=False),
)

run = Table(
    "run",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("config", Text, nullable=False),
    Column("git_commit", String(64)),
    _int("created_us"),
)

tree = Table(
    "tree",
    metadata,
    _id(),
    Column("run_id", String(26), ForeignKey("run.id", ondelete="CASCADE"), nullable=False),
    _ref("problem_id", "problem.id", index=True),
    _ref("prompt_id", "prompt.id", nullable=True, index=True),
    _int("step"),
    _int("number"),
    _int("seed"),
    _int("max_completion_length"),
    Column("meta", Text, nullable=False),
    Column("content_key", LargeBinary(16)),
    # Over what `content_key` leaves out; absent in trees of schema 0002 and before.
    Column("state_key", LargeBinary(16)),
    # Fresh leaves alone: a pass rate never counts what came from the cache.
    _int("n_nodes"),
    _int("n_leaves"),
    _int("n_right"),
    _int("n_generated"),
    _int("n_cached"),
    Column("state", String(8), nullable=False),
    Column("owner", Text),
    Column("lease_until_us", BigInteger),
    _int("attempts"),
    _int("created_us"),
    UniqueConstraint("run_id", "step", "problem_id", "number"),
    CheckConstraint("state IN ('queued', 'running', 'done')", name="state"),
    CheckConstraint("(state = 'running') = (lease_until_us IS NOT NULL)", name="lease"),
    CheckConstraint("state <> 'done' OR prompt_id IS NOT NULL", name="done"),
    Index(None, "run_id", "state", "step"),
    # Ids bound what a resumed run may read, so none may come back after a deletion.
    sqlite_autoincrement=True,
)

# One sampled continuation. `source`: 0, or the id of the draw it was taken from. No foreign key: a copy
# stays a copy when the original's run is deleted, and AUTOINCREMENT keeps ids from being used again.
draw = Table(
    "draw",
    metadata,
    _id(),
    _ref("tree_id", "tree.id", ondelete="CASCADE"),
    _int("row"),
    _ref("node_id", "node.id", index=True),
    _ref("solution_id", "solution.id", nullable=True, index=True),
    _ref("policy_id", "policy.id", nullable=True, index=True),
    _ref("sampler_id", "sampler.id", nullable=True),
    _int("parent"),
    _int("offset"),
    _int("k"),
    _int("seed"),
    Column("finish", String(8), nullable=False),
    _int("policy_version"),
    _int("source"),
    Column("logprobs", LargeBinary, nullable=False),
    Column("entropies", LargeBinary, nullable=False),
    Column("versions", LargeBinary),
    Column("mask", LargeBinary),
    UniqueConstraint("tree_id", "row"),
    CheckConstraint(_FINISH, name="finish"),
    CheckConstraint("source >= 0", name="source"),
    CheckConstraint("source > 0 OR policy_id IS NOT NULL", name="policy"),
    CheckConstraint("length(logprobs) = length(entropies)", name="arrays"),
    sqlite_autoincrement=True,
)
Index(
    "ix_draw_source",
    draw.c.source,
    sqlite_where=draw.c.source > 0,
    postgresql_where=draw.c.source > 0,
)

# No index by verifier: one would let a planner without statistics read all verdicts of the verifier first.
# `position`: the newest tree when this was written; a resumed run does not read verdicts that came later.
verdict = Table(
    "verdict",
    metadata,
    _ref("solution_id", "solution.id", ondelete="CASCADE"),
    _ref("verifier_id", "verifier.id"),
    Column("outcome", String(8), nullable=False),
    Column("reward", Double),
    Column("answer", Words),
    Column("detail", Text),
    Column("seconds", Double, nullable=False),
    _int("position"),
    Column("row_key", LargeBinary(16)),
    PrimaryKeyConstraint("solution_id", "verifier_id"),
    CheckConstraint("outcome IN ('scored', 'skipped', 'timeout', 'error')", name="outcome"),
    CheckConstraint("(outcome = 'scored') = (reward IS NOT NULL)", name="scored"),
    CheckConstraint(f"reward BETWEEN -{_MAX_REWARD} AND {_MAX_REWARD}", name="reward"),
)

# One row a node of the tree, with the verdict as this search got it.
visit = Table(
    "visit",
    metadata,
    _ref("tree_id", "tree.id", ondelete="CASCADE"),
    _int("row"),
    _int("parent_row"),
    _int("draw_row"),
    _int("start"),
    _int("stop"),
    _int("offset"),
    _int("visits"),
    Column("value_sum", Double, nullable=False),
    Column("prior", Double),
    Column("finish", String(8), nullable=False),
    Column("origin", String(16), nullable=False),
    Column("chosen_by_token", Boolean, nullable=False),
    Column("selected", Boolean, nullable=False),
    Column("reward", Double),
    Column("outcome", String(8)),
    Column("answer", Words),
    Column("detail", Text),
    Column("seconds", Double),
    PrimaryKeyConstraint("tree_id", "row"),
    CheckConstraint(_FINISH, name="finish"),
    CheckConstraint("(outcome IS NULL) = (seconds IS NULL)", name="judged"),
    CheckConstraint(f"reward BETWEEN -{_MAX_REWARD} AND {_MAX_REWARD}", name="reward"),
)

# Replay of a run's own rows: what may come back (`item`), and what did (`item_use`).
pool = Table(
    "pool",
    metadata,
    _id(),
    Column("run_id", String(26), ForeignKey("run.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("sampler", String(16), nullable=False),
    Column("remover", String(16), nullable=False),
    _int("max_size"),
    Column("max_times_sampled", _Big),
    Column("max_age", _Big),
    UniqueConstraint("run_id", "name"),
    CheckConstraint("sampler IN ('uniform', 'prioritised', 'oldest', 'newest')", name="sampler"),
    CheckConstraint("remover IN ('oldest', 'lowest')", name="remover"),
    CheckConstraint("max_size > 0", name="max_size"),
    CheckConstraint("max_times_sampled > 0", name="max_times_sampled"),
    CheckConstraint("max_age >= 0", name="max_age"),
)

# An ended path in a pool, by the draw that ends it. `step`: of the run, when it was put.
item = Table(
    "item",
    metadata,
    _id(),
    _ref("pool_id", "pool.id", ondelete="CASCADE"),
    _ref("draw_id", "draw.id", ondelete="CASCADE", index=True),
    Column("priority", Double, nullable=False),
    _int("step"),
    UniqueConstraint("pool_id", "draw_id"),
    CheckConstraint("priority >= 0 AND priority <= 1e6", name="priority"),
    Index(None, "pool_id", "step"),
)

# `probability`, `size`: of the item and of its pool when it was drawn, without which there are no weights.
item_use = Table(
    "item_use",
    metadata,
    _ref("item_id", "item.id", ondelete="CASCADE"),
    _int("step"),
    _int("times"),
    Column("probability", Double, nullable=False),
    _int("size"),
    PrimaryKeyConstraint("item_id", "step"),
    CheckConstraint("times > 0", name="times"),
    CheckConstraint("probability > 0 AND probability <= 1", name="probability"),
)

# A stretch of a run's curriculum: from `step` on these problems are trained on, and why (`data`).
phase = Table(
    "phase",
    metadata,
    Column("run_id", String(26), ForeignKey("run.id", ondelete="CASCADE"), nullable=False),
    _int("number"),
    _int("step"),
    Column("kind", String(16), nullable=False),
    Column("data", Text, nullable=False),
    PrimaryKeyConstraint("run_id", "number"),
    CheckConstraint("number >= 0 AND step >= 0", name="place"),
)

_versions = MetaData()
alembic_version = Table(
    "alembic_version",
    _versions,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""alembic's own table, written here so that opening a database need not import alembic."""
