"""What the runs of a sweep freeze, and so can share."""
