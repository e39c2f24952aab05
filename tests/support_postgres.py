"""A PostgreSQL server for tests: the one at TREERL_TEST_PG_URL, or one of `pgserver`'s, started here.

pgserver's own start-up would make a user and open every folder above the data when it runs as root; its
programs alone are used here, as user `nobody` then. The server listens on a socket in a folder of its own.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy as sa

ENVIRONMENT = "TREERL_TEST_PG_URL"
MISSING = (
    f"no PostgreSQL: `pip install pgserver psycopg[binary]` (Python < 3.13), or set {ENVIRONMENT}"
)
START_LIMIT_S = 60


def available() -> bool:
    """Whether there is a server to use and a driver for it."""
    if find_spec("psycopg") is None:
        return False
    return ENVIRONMENT in os.environ or find_spec("pgserver") is not None


@contextmanager
def server() -> Iterator[str]:
    """URL of a database from which others may be made."""
    if ENVIRONMENT in os.environ:
        yield os.environ[ENVIRONMENT]
        return
    folder = Path(tempfile.mkdtemp(prefix="treerl-pg-"))
    try:
        with _running(folder) as url:
            yield url
    finally:
        shutil.rmtree(folder)


@contextmanager
def _running(folder: Path) -> Iterator[str]:
    nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    user = {} if nobody is None else {"user": nobody.pw_uid, "group": nobody.pw_gid}
    if nobody is not None:
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    programs = _programs(folder, user)
    data = folder / "data"
    options = ["--auth=trust", "--encoding=utf8", "--locale=C.UTF-8", "-U", "postgres", "--no-sync"]
    quiet = {"stdout": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run([programs / "initdb", "-D", data, *options], check=True, timeout=60, **quiet)
    log = (folder / "log").open("w")
    settings = ["-h", "", "-k", folder, "-c", "fsync=off", "-c", "shared_buffers=32MB"]
    process = subprocess.Popen(
        [programs / "postgres", "-D", data, *settings], stderr=log, close_fds=True, **quiet
    )
    try:
        url = f"postgresql+psycopg://postgres@/postgres?host={folder}"
        _await(url, process, log)
        yield url
    finally:
        process.send_signal(2)  # fast shutdown: sessions are ended, the data are kept
        process.wait(timeout=START_LIMIT_S)
        log.close()


def _programs(folder: Path, user: dict[str, int]) -> Path:
    """Folder of PostgreSQL's programs; a copy in `folder` if that user may not read them where they are."""
    there = Path(find_spec("pgserver").origin).parent / "pginstall"
    try:
        subprocess.run(
            [there / "bin" / "initdb", "--version"], check=True, capture_output=True, **user
        )
    except PermissionError:
        return Path(shutil.copytree(there, folder / "pginstall")) / "bin"
    return there / "bin"


def _await(url: str, process: "subprocess.Popen[bytes]", log: object) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    for _ in range(START_LIMIT_S * 20):
        if process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended: {Path(log.name).read_text()}")
        try:
            engine.connect().close()
            return
        except sa.exc.OperationalError:
            time.sleep(0.05)
    raise RuntimeError(f"PostgreSQL does not answer: {Path(log.name).read_text()}")


@contextmanager
def database(server_url: str) -> Iterator[str]:
    """URL of an empty schema, as good as a database and much cheaper to make; dropped afterwards."""
    name = f"treerl_{uuid.uuid4().hex}"
    engine = sa.create_engine(server_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    try:
        url = sa.make_url(server_url).update_query_dict({"options": f"-csearch_path={name}"})
        yield url.render_as_string(hide_password=False)
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
