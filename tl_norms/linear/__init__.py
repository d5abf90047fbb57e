"""The mathematics: torch only, knows nothing of TransformerLens."""
