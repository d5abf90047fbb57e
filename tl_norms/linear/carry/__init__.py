"""What can be carried through held operators: pairs of one block, token vectors, directions."""
