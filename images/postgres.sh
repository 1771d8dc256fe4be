#!/bin/sh
# Start PostgreSQL, in $PGDATA. Without $POSTGRES_PASSWORD it listens to 127.0.0.1 alone and asks for no password. With
# it, it listens to all and asks for that one; it may be another one at the next start. $PGDATA is then below a volume.
set -eu
if [ -z "${POSTGRES_PASSWORD-}" ]; then
  [ -s "$PGDATA/PG_VERSION" ] ||
    initdb --username=mlflow --auth=trust --encoding=UTF8 --no-locale
  exec postgres -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp
fi

# After SIGKILL, postmaster.pid names a process of the container that was, and PostgreSQL takes whatever bears that
# number now, PID 1 or a probe, for its owner. Who has the lock is the only one at this folder: the kernel frees it
# however the holder ends. PostgreSQL inherits it.
exec 9>> "$PGDATA.lock"
flock 9
rm -f "$PGDATA/postmaster.pid"

as_owner() { postgres --single -j -D "$1" postgres > /dev/null; }
[ -s "$PGDATA/PG_VERSION" ] || {
  new=$PGDATA.new
  rm -rf "$new"  # what a start that was killed has left
  initdb -D "$new" --username=postgres --auth=trust --encoding=UTF8 --no-locale
  # By the socket, which is in this container alone, as anyone; from elsewhere as one who owns two databases.
  printf '%s\n' 'local all all trust' 'host all mlflow all scram-sha-256' > "$new/pg_hba.conf"
  printf '%s\n\n' \
    'create role mlflow login;' \
    'create database mlflow owner mlflow;' \
    'create database mlflow_auth owner mlflow;' | as_owner "$new"
  mv "$new" "$PGDATA"
}
printf '%s\n\n' "alter role mlflow password \$password\$$POSTGRES_PASSWORD\$password\$;" | as_owner "$PGDATA"
unset POSTGRES_PASSWORD
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp
