"""Class-agnostic boxes that may hold objects: selective search, adapters, windows, imports."""
