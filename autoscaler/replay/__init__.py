"""The same recommending and guarding over a recorded demand: what would have been, in a closed loop."""
