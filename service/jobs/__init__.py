"""The job queue, the leases on its jobs, and the processes that run a job on this machine."""
