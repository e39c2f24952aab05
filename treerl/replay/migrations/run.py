"""Running the revisions on an open connection; the one module that imports alembic."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

FOLDER = Path(__file__).parent


def configuration(connection: sa.Connection | None = None) -> Config:
    """alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade_to_head(connection: sa.Connection) -> None:
    """Runs the missing revisions within the connection's transaction."""
    command.upgrade(configuration(connection), "head")
