"""What the prior says of donors' layers, as placements and as recipes. No torch."""
