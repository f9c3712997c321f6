"""Wanted to allowed: ordered, pure guards; each may hold, cap or floor, and says why."""
