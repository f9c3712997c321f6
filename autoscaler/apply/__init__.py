"""Allowed figures to steps (pure plan) and the sending of them: intent before effect, shrink before grow."""
