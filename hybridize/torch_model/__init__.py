"""Models in torch: their tensors, layers and states, read from any checkpoint."""
