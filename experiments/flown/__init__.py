"""Flow to learn: generate networks for a task from a few of its examples, and audit that they are new."""
