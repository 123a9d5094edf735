"""Attaches stepcache to a pipe, runs it and undoes it. The only package that changes the user's objects."""
