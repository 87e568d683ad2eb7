"""Which donor's layers belong where: score, search, and what the best few are worth."""
