"""From a plan to a model folder: copied, checked, published. No torch."""
