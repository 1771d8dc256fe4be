"""Bring MLflow's databases to this version of the server, and its users to their passwords and permissions.

Runs before each start of the server. A new database gets its tables, an old one is migrated, one of this version is
left as it is.
"""

import os

from mlflow.db import upgrade
from mlflow.server.auth.config import read_auth_config
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry
from sqlalchemy import text

tracking = os.environ["MLFLOW_BACKEND_STORE_URI"]
auth = read_auth_config()
# Waits until PostgreSQL answers.
engine = create_sqlalchemy_engine_with_retry(tracking).execution_options(isolation_level="AUTOCOMMIT")
with engine.connect() as connection:
    # Of several servers that start together, one at a time; the lock ends with the connection.
    connection.execute(text("select pg_advisory_lock(1)"))
    upgrade.main([tracking], standalone_mode=False)
    users = SqlAlchemyStore()
    users.init_db(auth.database_uri)
    for name, password, admin in (
        (auth.admin_username, auth.admin_password, True),
        (os.environ["STEPS_USERNAME"], os.environ["STEPS_PASSWORD"], False),
    ):
        if not users.has_user(name):
            users.create_user(name, password, is_admin=admin)
        elif not users.authenticate_user(name, password):
            users.update_user(name, password=password)
    # By default a user changes only what it has created; the steps also write to an experiment that somebody else has.
    for kind in ("experiment", "registered_model"):
        users.grant_user_permission(os.environ["STEPS_USERNAME"], kind, "*", "EDIT")
