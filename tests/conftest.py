"""Databases for the tests that run on each kind of them."""

import itertools
from contextlib import ExitStack

import pytest

from tests import support_postgres

POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)


@pytest.fixture(scope="session")
def pg_server():
    if not support_postgres.available():
        pytest.skip(support_postgres.MISSING)
    with support_postgres.server() as url:
        yield url


@pytest.fixture
def pg_urls(pg_server):
    """Makes empty databases."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(support_postgres.database(pg_server))


@pytest.fixture(params=["memory", "file", POSTGRES])
def new_url(request, tmp_path):
    """Gives a new, empty database at each call: SQLite in memory, a SQLite file, PostgreSQL."""
    if request.param == "postgres":
        return request.getfixturevalue("pg_urls")
    numbers = itertools.count()
    if request.param == "file":
        return lambda: f"sqlite:///{tmp_path}/replay{next(numbers)}.db"
    return lambda: "sqlite://"


@pytest.fixture
def any_url(new_url):
    """An empty database; one in memory is another one each time it is opened."""
    return new_url()


@pytest.fixture(params=["file", POSTGRES])
def kept_url(request, tmp_path):
    """An empty database that outlives its `Store` and can be opened by other processes."""
    if request.param == "postgres":
        return request.getfixturevalue("pg_urls")()
    return f"sqlite:///{tmp_path}/replay.db"
