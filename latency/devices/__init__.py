"""The devices that a job can name, and profiles of devices that cannot be reached from here."""
