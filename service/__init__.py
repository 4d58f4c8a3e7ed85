"""The server: REST interface, job queue, database and file storage, and the pipeline that runs a job."""
