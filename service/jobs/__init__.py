"""The queue, the leases on it, and the processes that run a job on this machine."""
