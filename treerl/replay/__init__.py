"""The replay cache: trees, solutions, verdicts and where they came from, in SQL.

`store.Store` writes and reads whole trees, `reuse` finds stored solutions for a new tree, `writer` takes
writing off the training thread, `transfer` moves solutions between databases, `stats` counts. It knows
arrays and problems, no models. Nothing is imported here, so that sqlalchemy is loaded only when used.
"""
