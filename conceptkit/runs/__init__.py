"""Common parts of commands: opening a study, the run folder, the rows for the report."""
