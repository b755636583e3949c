"""Retrieval: hard negatives for training, and the measures of finished students that embed."""
