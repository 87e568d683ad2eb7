"""Models perturbed and measured, layer by layer."""
