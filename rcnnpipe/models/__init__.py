"""Networks and their parts: backbones cut at named layers, warping, weights."""
