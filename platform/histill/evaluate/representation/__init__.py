"""Judge representations: what the embeddings of a frozen encoder tell of the labels of unseen cases."""
