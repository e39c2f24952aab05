"""alembic's revisions of the schema, in the wheel; only `treerl.replay.database.upgrade` runs them."""
