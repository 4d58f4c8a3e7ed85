"""Tables, sessions, migrations, and the states of a job."""
