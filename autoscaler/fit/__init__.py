"""Fitting the forecast's model: rows from history, a regression in a process of its own, a trial on later data.

Nothing here runs on a pass: `daily` starts the process and takes its verdict once it is there.
"""
