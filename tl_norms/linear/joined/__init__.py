"""Several layers of one shape at once, one after the other on the batch axis: b = (layer text)."""
