"""Query plans as the databases give them: which tables a piece of code reads without an index."""

import re
from contextlib import contextmanager

import sqlalchemy as sa

_SCAN = re.compile(r"(?:SCAN|MATERIALIZE) (?!CONSTANT ROW)(\w+)|SEARCH (\w+) USING AUTOMATIC")


@contextmanager
def table_scans(store):
    """Yields a list that is filled with the tables scanned whole by what runs inside, with the query."""
    scanned = []
    postgres = store.engine.dialect.name == "postgresql"

    def explain(connection, cursor, statement, parameters, context, executemany):
        if not statement.lstrip().startswith(("SELECT", "WITH", "UPDATE", "DELETE")) or executemany:
            return
        if postgres:
            # Small tables are scanned because that is cheaper; here it is asked whether they must be.
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute(f"EXPLAIN {statement}", parameters)
            lines = [line for (line,) in cursor.fetchall()]
            cursor.execute("SET LOCAL enable_seqscan = on")
            found = [m[1] for line in lines if (m := re.search(r"Seq Scan on (\w+)", line))]
        else:
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            lines = [detail for *_, detail in cursor.fetchall()]
            found = [m[1] or m[2] for line in lines if (m := _SCAN.match(line))]
        scanned.extend((table, statement) for table in found)

    sa.event.listen(store.engine, "before_cursor_execute", explain)
    try:
        yield scanned
    finally:
        sa.event.remove(store.engine, "before_cursor_execute", explain)
