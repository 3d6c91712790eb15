"""The part of training that knows Ray: launch of a run on Ray Train, its workers, and what is shown of them."""
