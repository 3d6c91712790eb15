"""Evaluate representations: how well the embeddings of a frozen encoder predict the labels of unseen cases."""
