"""Turn the results of a job into text, HTML and Markdown."""
