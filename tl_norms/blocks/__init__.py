"""Reading TransformerLens: what a block is, and what a cache holds of it. No mathematics here."""
