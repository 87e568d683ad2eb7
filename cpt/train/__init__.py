"""Training: what happens in a run, a stage and a step."""
