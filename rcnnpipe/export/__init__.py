"""Detectors as graphs that run without us: ONNX, and the proof that they find the same."""
