"""Admission: pods are born at the size that their running siblings have, and what can't be meant is refused at once."""
