-- A role and a database for cohort-bridge, and nothing else: with psql, as one who may make roles and
-- databases. The role's password is in the variable ROLE_PASSWORD.
\set ON_ERROR_STOP on
\getenv password ROLE_PASSWORD
-- What the server logs of statements would hold the password; only a superuser may keep it quiet.
SELECT rolsuper AS may_be_quiet FROM pg_roles WHERE rolname = current_user \gset
\if :may_be_quiet
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
\endif
CREATE ROLE cohort_bridge LOGIN PASSWORD :'password'
    NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
-- Whoever is no superuser must be able to act as the owner whom a database is given.
GRANT cohort_bridge TO CURRENT_USER;
CREATE DATABASE cohort_bridge OWNER cohort_bridge ENCODING 'UTF8' TEMPLATE template0;
-- Everybody may connect to a new database; this one holds who is in which cohort.
REVOKE ALL ON DATABASE cohort_bridge FROM PUBLIC;
REVOKE cohort_bridge FROM CURRENT_USER;
