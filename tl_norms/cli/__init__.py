"""The command line: arguments, loading a model, tables, JSON and the self-contained page."""
