"""Model folders, exports, and the lineage of trained models, teachers and students alike."""
