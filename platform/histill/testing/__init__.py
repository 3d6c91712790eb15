"""What tests of code around histill need as well: synthetic tile sets, and ways to spoil them."""
