"""The database: tables, sessions, migrations, and the states of a job."""
