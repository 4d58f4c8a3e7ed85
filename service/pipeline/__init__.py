"""The stages of a job. It imports torch; the web process never imports it."""
