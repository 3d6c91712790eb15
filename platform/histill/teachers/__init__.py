"""Teachers: one interface over the classical and the network one, and their cached responses."""
