#!/bin/sh
# Start PostgreSQL, in $PGDATA, for whoever shares its network: it listens to 127.0.0.1 alone and asks for no password.
set -eu
[ -s "$PGDATA/PG_VERSION" ] ||
  initdb --username=mlflow --auth=trust --encoding=UTF8 --no-locale
exec postgres -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp
