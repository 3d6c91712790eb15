"""Model folders: what a trained model is made of on disk, teacher or student."""
