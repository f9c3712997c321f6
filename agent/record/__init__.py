"""Recording what a node showed, and playing it again."""
