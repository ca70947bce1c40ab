"""Every class of bytes in a repository is damaged in every way, and judged by us and by stock restic.

``classes`` holds the table of classes with the verdicts that are expected; docs/format.md shows it, and a test proves
that they are the same. ``python -m tests.flips`` writes it there.
"""
