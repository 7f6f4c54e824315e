"""Files between stages: each artifact is one self-describing HDF5 file."""
