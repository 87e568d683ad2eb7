"""From a recipe to a plan: donors, slots, bridges, what it costs. No torch."""
