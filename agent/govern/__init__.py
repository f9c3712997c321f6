"""Governing: claims on a device become the limits of its workers; pure."""
