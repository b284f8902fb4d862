# What the image of PostgreSQL runs when its volume is new: see ../docker-compose.postgresql.yml.
# Not executable, so that it is sourced, and what it exports is gone with the subshell.
(
    ROLE_PASSWORD="$(cat /run/secrets/postgresql-password)"
    export ROLE_PASSWORD
    psql --no-psqlrc --username postgres --dbname postgres --file /etc/cohort-bridge/role.sql
)
