"""Every architecture that TransformerLens boots, tiny and random: exact, or refused by name."""
