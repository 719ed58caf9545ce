"""Putting the bodies of If, Loop and Scan in the place of their nodes, one file per operator."""
