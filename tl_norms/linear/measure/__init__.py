"""What is measured of vectors: their norms and other numbers."""
