"""Many guided trainings compared: which are planned, run and kept."""
