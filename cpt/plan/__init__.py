"""From a recipe to a plan of training: what learns, how fast, what it costs. No torch."""
