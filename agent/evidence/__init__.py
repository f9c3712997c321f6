"""What a tick tells beyond its measurements: deaths of memory, bypasses, who is held back."""
