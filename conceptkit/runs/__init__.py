"""What every command begins with and what it keeps: the study opened, the run folder, the rows of its report."""
