"""Text: where it comes from, and which of it models are fitted and measured on."""
